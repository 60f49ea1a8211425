"""Feature spaces of the shipped judge, and distances in them."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from fastrepulse.default_model.judge import features_of, load_classifier, spaces_of
from fastrepulse.metrics import (
    SPACES,
    SmallSetWarning,
    distances,
    frechet_distance,
    kernel_distance,
    to_pictures,
)
from fastrepulse.metrics.spaces import gram
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def heldout():
    with Image.open(Path(__file__).parents[1] / "data" / "heldout.png") as sheet:
        corners = [(x, y) for y in range(0, 512, 64) for x in range(0, 256, 64)]
        return [sheet.convert("RGB").crop((x, y, x + 64, y + 64)) for x, y in corners]


def test_the_judges_spaces_are_means_of_its_feature_maps():
    images = heldout()[:5]
    maps = {}
    network = load_classifier()
    handles = [
        network.body[layer].register_forward_hook(
            lambda _module, _inputs, output, layer=layer: maps.update({layer: output})
        )
        for layer in (8, 14)
    ]
    content = features_of(images)
    for handle in handles:
        handle.remove()
    features = spaces_of(images)
    assert tuple(features) == SPACES
    expected = {
        "content": content,
        "location": maps[14].mean(dim=1).flatten(1),
        "style": maps[8].mean(dim=(2, 3)),
    }
    widths = {space: values.shape[1] for space, values in features.items()}
    assert widths == {"content": 128, "location": 256, "style": 64}
    for space in SPACES:
        torch.testing.assert_close(features[space], expected[space], rtol=RTOL, atol=ATOL)


def test_the_number_of_images_does_not_change_the_features():
    images = [*heldout(), *heldout(), *heldout()[:7]]
    whole, alone = spaces_of(images), spaces_of(images[-1:])
    for space in SPACES:
        torch.testing.assert_close(alone[space], whole[space][-1:], rtol=RTOL, atol=ATOL)


@pytest.mark.filterwarnings("ignore::fastrepulse.metrics.SmallSetWarning")
def test_moving_images_changes_location_and_recolouring_them_changes_style():
    images = heldout()
    original = spaces_of(images)
    moved = distances(spaces_of([ImageChops.offset(i, 20, 0) for i in images]), original)
    turned = [Image.merge("RGB", [i.split()[c] for c in (1, 2, 0)]) for i in images]
    recoloured = distances(spaces_of(turned), original)
    assert moved["location"].frechet > 2 * recoloured["location"].frechet
    assert moved["location"].kernel > recoloured["location"].kernel
    assert recoloured["style"].frechet > 20 * moved["style"].frechet
    assert recoloured["style"].kernel > moved["style"].kernel


def test_a_gram_matrix_is_the_mean_product_of_each_pair_of_channels():
    maps = draw(3, 3, 8, 8)
    for matrix, each in zip(gram(maps), maps, strict=True):
        products = [(each[a] * each[b]).mean() for a in range(3) for b in range(a, 3)]
        torch.testing.assert_close(matrix, torch.stack(products))
    torch.testing.assert_close(gram(maps.roll(3, dims=3)), gram(maps))


def test_distances_are_computed_in_every_space():
    a = {space: draw(20, 3, seed=i) for i, space in enumerate(SPACES)}
    b = {space: draw(18, 3, seed=i + 9) ** 2 for i, space in enumerate(SPACES)}
    found = distances(a, b)
    assert tuple(found) == SPACES
    for space, distance in found.items():
        expected = frechet_distance(a[space], b[space])
        assert distance.frechet == pytest.approx(expected) and expected > 0
        assert distance.kernel == pytest.approx(kernel_distance(a[space], b[space]))


def test_distances_of_small_sets_warn():
    features = {"location": draw(5, 16)}
    with pytest.warns(SmallSetWarning, match="5 rows of 16"):
        found = distances(features, features)
    assert found["location"].frechet == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        ({"style": torch.ones(3, 2)}, {"content": torch.ones(3, 2)}, "same spaces"),
        ({"style": torch.ones(3, 2)}, {"style": torch.ones(3, 4)}, "equally many features"),
        ({"style": torch.ones(3, 2)}, {"style": torch.ones(1, 2)}, "b must .*N >= 2"),
    ],
)
def test_distances_refuse_different_spaces_and_bad_sets(a, b, named):
    with pytest.raises(ValueError, match=named):
        distances(a, b)


def test_images_become_a_tensor():
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    pictures = to_pictures([image, image.convert("RGBA")])
    assert pictures.shape == (2, 3, 2, 3)
    torch.testing.assert_close(pictures[1, :, 1, 2], torch.tensor([1, 0, 0.2]))


@pytest.mark.parametrize("sizes", [[], [(3, 2), (2, 3)]])
def test_images_must_have_one_size(sizes):
    with pytest.raises(ValueError, match="images must be one or more images of one size"):
        to_pictures([Image.new("RGB", size) for size in sizes])
