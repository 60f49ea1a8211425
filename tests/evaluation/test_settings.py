"""The compared settings, and means with intervals."""

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastrepulse.evaluation import ALL, QUICK, select
from fastrepulse.evaluation.measure import Estimate
from fastrepulse.evaluation.settings import (
    DEFAULT,
    FAMILIES,
    FULL_CAPTIONS,
    GUIDANCE,
    INDEPENDENT,
    Setting,
)


def test_settings_have_unique_titles_and_keys():
    settings = [INDEPENDENT, FULL_CAPTIONS, *(each for each in ALL if isinstance(each, Setting))]
    settings += [family.at(s) for family in FAMILIES for s in (family.low, family.high)]
    titles = [setting.title for setting in settings]
    keys = {json.dumps(setting.key()) for setting in settings}
    # Full captions differ by their prompts, not by their arguments
    assert len(set(titles)) == len(titles) and len(keys) == len(settings)
    assert DEFAULT in ALL and len({each.method for each in ALL}) == len(ALL) - len(GUIDANCE) + 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.method)
def test_the_strength_changes_the_arguments_of_sample(family):
    weak, strong = (family.at(s).key() for s in (family.low, family.high))
    assert 0 < family.low < family.high
    assert (weak["arguments"], weak.get("noise")) != (strong["arguments"], strong.get("noise"))


def test_quick_compares_the_default_with_three_methods():
    assert DEFAULT in QUICK and set(map(id, QUICK)) <= set(map(id, ALL))
    assert len({each.method for each in QUICK}) == 4


def test_methods_are_selected_by_name():
    chosen = select(ALL, ["svgd", "Particle Guidance"])
    assert {each.method for each in chosen} == {"SVGD", "Particle Guidance"}
    with pytest.raises(ValueError, match=r"SPELL.*'spel'"):
        select(ALL, ["spel"])


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        pytest.param([0.7] * 5, (0.7, 0.7, 0.7), id="constant"),
        pytest.param([3.0], (3.0, 3.0, 3.0), id="one"),
        # The means of two draws are 0, 1/2, 1 with probability 1/4, 1/2, 1/4
        pytest.param([0.0, 1.0], (0.5, 0.0, 1.0), id="two"),
    ],
)
def test_intervals_of_few_values(values, interval):
    estimate = Estimate.of(values)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx(interval)


def test_the_interval_of_many_values_is_nearly_normal():
    values = np.random.default_rng(1).normal(5, 2, 400)
    estimate, half = Estimate.of(values), 1.96 * values.std() / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.05 * half)
