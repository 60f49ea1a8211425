"""Artefacts raise the distance to rendered pictures and do not count as diversity."""

from itertools import pairwise

import pytest
import torch

from fastrepulse.default_model.judge import (
    attribute_coverage,
    attribute_vendi,
    judge,
    most_common_share,
)
from fastrepulse.default_model.rendered import HELD_OUT, off_data, rendered_pictures
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.sampling.output import to_pil
from helpers.checkout import import_from_checkout

KINDS = import_from_checkout("training.dirt").KINDS
SUBJECT = SUBJECTS[0]
VISIBLE = {"mottle": (0.05, 0.1, 0.2), "noise": (0.05, 0.1, 0.2), "confetti": (0.01, 0.03, 0.06)}


def dirty(pictures, kind, amount):
    generator = torch.Generator().manual_seed(0)
    return to_pil((KINDS[kind](pictures, amount, generator=generator) + 1) / 2)


@pytest.fixture(scope="module")
def rendered():
    """Pictures of each subject in [-1, 1] that are not in the reference."""
    return rendered_pictures()[:, :HELD_OUT] / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 2, 5])
def test_off_data_grows_with_every_kind_of_artefact(rendered, kind, number):
    pictures, subject = rendered[number], SUBJECTS[number]
    distances = [off_data(to_pil((pictures + 1) / 2), subject)]
    distances += [off_data(dirty(pictures, kind, amount), subject) for amount in VISIBLE[kind]]
    assert distances[0] == pytest.approx(1, abs=0.02)
    assert all(b > 1.05 * a for a, b in pairwise(distances))


def diversity(rendered, images_of):
    """The diversity of four pictures of each subject, each repeated three times."""
    measured = []
    for i, subject in enumerate(SUBJECTS):
        images = images_of(rendered[i, :4].repeat(3, 1, 1, 1))
        shown = [attributes for judged, attributes in judge(images) if judged is subject]
        coverage = attribute_coverage(shown, subject, len(images))
        measured.append((attribute_vendi(shown), coverage))
    return [sum(values) / len(SUBJECTS) for values in zip(*measured, strict=True)]


@pytest.fixture(scope="module")
def diversity_of_clean(rendered):
    return diversity(rendered, lambda pictures: to_pil((pictures + 1) / 2))


@pytest.mark.parametrize("kind", KINDS)
def test_artefacts_do_not_raise_diversity(rendered, diversity_of_clean, kind):
    for amount in VISIBLE[kind]:
        after_artefacts = diversity(
            rendered, lambda pictures, amount=amount: dirty(pictures, kind, amount)
        )
        for after, before in zip(after_artefacts, diversity_of_clean, strict=True):
            assert after <= 1.02 * before


def test_attribute_measures_of_known_sets():
    names = [a.name for a in SUBJECT.attributes]
    first = {a.name: a.values[0] for a in SUBJECT.attributes}
    other = {a.name: a.values[1] for a in SUBJECT.attributes}
    assert attribute_vendi([]) == 0 and most_common_share([], SUBJECT) == 0
    assert attribute_vendi([first] * 5) == pytest.approx(1)
    assert attribute_vendi([first, other]) == pytest.approx(2)
    assert most_common_share([first, first, other], SUBJECT) == pytest.approx(2 / 3)
    half = {**first, names[0]: other[names[0]]}
    assert 1 < attribute_vendi([first, half]) < 2
    expected = sum(2 / min(len(a.values), 8) for a in SUBJECT.attributes) / len(names)
    assert attribute_coverage([first, other], SUBJECT, 8) == pytest.approx(expected)
    # No image shows the subject
    assert attribute_coverage([], SUBJECT, 8) == 0
