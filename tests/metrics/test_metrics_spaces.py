"""Feature spaces of a small network and of the shipped judge."""

import dataclasses
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fastrepulse.default_model.judge import features_of, judge_backbone
from fastrepulse.metrics import (
    SPACES,
    Backbone,
    SmallSetWarning,
    distances,
    frechet_distance,
    kernel_distance,
    to_pictures,
)
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small(**changes):
    """A backbone that returns the images, their 2 x 2 averages and their 4 x 4 averages."""
    network = nn.Sequential(
        OrderedDict(
            early=nn.Identity(),
            rectified=nn.ReLU(inplace=True),
            middle=nn.AvgPool2d(2),
            late=nn.AvgPool2d(2),
            flat=nn.Flatten(),
        )
    ).eval()
    settings = {
        "content": "late",
        "location": "middle",
        "style": "early",
        "size": 8,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return Backbone("small", network, **{**settings, **changes})


def heldout():
    with Image.open(Path(__file__).parents[1] / "data" / "heldout.png") as sheet:
        corners = [(x, y) for y in range(0, 512, 64) for x in range(0, 256, 64)]
        return [sheet.convert("RGB").crop((x, y, x + 64, y + 64)) for x, y in corners]


def test_each_space_equals_its_definition():
    pictures = draw(3, 3, 8, 8)
    features = small()(pictures)
    assert tuple(features) == SPACES
    for i, picture in enumerate(pictures):
        blocks = picture.view(3, 4, 2, 4, 2).mean(dim=(2, 4))
        products = [
            (picture[a] * picture[b]).mean() for a, b in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))
        ] + [picture[2].square().mean()]
        torch.testing.assert_close(features["content"][i], picture.mean(dim=(1, 2)))
        torch.testing.assert_close(features["location"][i], blocks.mean(0).flatten())
        torch.testing.assert_close(features["style"][i], picture.mean(dim=(1, 2)))
        torch.testing.assert_close(features["style_gram"][i], torch.stack(products))


def test_a_later_in_place_layer_does_not_change_the_features():
    backbone = small(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pictures = draw(2, 3, 8, 8)
    expected = (pictures - 0.5).mean(dim=(2, 3)) / torch.tensor([0.25, 0.5, 1.0])
    torch.testing.assert_close(backbone(pictures)["style"], expected)


def test_the_content_layer_may_be_flat():
    pictures = draw(2, 3, 8, 8)
    blocks = pictures.view(2, 3, 2, 4, 2, 4).mean(dim=(3, 5))
    torch.testing.assert_close(small(content="flat")(pictures)["content"], blocks.flatten(1))


def test_moving_an_image_changes_location_and_not_style():
    pictures = draw(4, 3, 8, 8)
    features, moved = small()(pictures), small()(pictures.roll(3, dims=3))
    torch.testing.assert_close(features["style_gram"], moved["style_gram"])
    assert not torch.allclose(features["location"], moved["location"], atol=1e-2)


def test_images_of_another_size_are_resized():
    constant = torch.tensor([0.2, 0.4, 0.9]).view(1, 3, 1, 1)
    features = small()(constant.expand(1, 3, 20, 13))
    torch.testing.assert_close(features["content"], constant.flatten(1))
    assert features["location"].shape == (1, 16)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_the_batch_size_does_not_change_the_features(batch_size):
    pictures = draw(7, 3, 64, 64)
    whole, batched = judge_backbone()(pictures), judge_backbone()(pictures, batch_size)
    for space in SPACES:
        torch.testing.assert_close(batched[space], whole[space], rtol=RTOL, atol=ATOL)


def test_hooks_are_removed_from_the_network():
    backbone = judge_backbone()
    backbone(draw(1, 3, 64, 64))
    assert not any(module._forward_hooks for module in backbone.network.modules())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"content": "nothing"}, "content .*'nothing'"),
        ({"location": "nothing"}, "location .*'nothing'"),
        ({"style": "nothing"}, "style .*'nothing'"),
        ({"network": nn.Sequential(nn.Identity()).eval()}, "content .*'late'"),
    ],
)
def test_a_backbone_refuses_unknown_layers(changes, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(small(), **changes)


def test_a_backbone_refuses_a_network_in_training_mode():
    backbone = small()
    backbone.network.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        dataclasses.replace(backbone)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"location": "flat"}, r"location .*\[N, C, H, W\], got \(2, 12\)"),
        ({"style": "flat"}, r"style .*\[N, C, H, W\], got \(2, 12\)"),
    ],
)
def test_location_and_style_layers_must_return_maps(changes, named):
    with pytest.raises(ValueError, match=named):
        small(**changes)(draw(2, 3, 8, 8))


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Identity()
        self.pair = nn.Identity()
        self.unused = nn.Identity()

    def forward(self, pictures):
        self.pair((pictures, pictures))
        return self.used(pictures)


@pytest.mark.parametrize(
    ("content", "named"),
    [("unused", "content .*uses"), ("pair", "content .*got tuple")],
)
def test_layers_must_run_and_return_a_tensor(content, named):
    backbone = Backbone("skips", Skips().eval(), content, location="used", style="used", size=8)
    with pytest.raises(ValueError, match=named):
        backbone(draw(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("pictures", "named"),
    [
        (torch.zeros(3, 8, 8), r"images .*\(3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), r"images .*\(2, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"images .*\(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), -1.0), r"images .*\[-1, -1\]"),
        (torch.full((1, 3, 8, 8), 255), r"images .*\[255, 255\]"),
        (torch.full((1, 3, 8, 8), torch.nan), "images .*nan"),
    ],
)
def test_a_backbone_refuses_tensors_that_are_not_images(pictures, named):
    with pytest.raises(ValueError, match=named):
        small()(pictures)


def test_a_backbone_refuses_a_batch_size_of_zero():
    with pytest.raises(ValueError, match="batch_size"):
        small()(draw(2, 3, 8, 8), batch_size=0)


def test_widths_of_the_judges_spaces():
    images = heldout()[:5]
    features = judge_backbone()(to_pictures(images))
    widths = {space: values.shape[1] for space, values in features.items()}
    assert widths == {"content": 128, "location": 256, "style": 64, "style_gram": 2080}
    torch.testing.assert_close(features["content"], features_of(images), rtol=RTOL, atol=ATOL)


@pytest.mark.filterwarnings("ignore::fastrepulse.metrics.SmallSetWarning")
def test_moving_images_changes_location_and_recolouring_them_changes_style():
    backbone, pictures = judge_backbone(), to_pictures(heldout())
    original = backbone(pictures)
    moved = distances(backbone(pictures.roll(20, dims=3)), original)
    recoloured = distances(backbone(pictures[:, [1, 2, 0]]), original)
    assert moved["location"].frechet > 2 * recoloured["location"].frechet
    assert moved["location"].kernel > recoloured["location"].kernel
    for space in ("style", "style_gram"):
        assert recoloured[space].frechet > 20 * moved[space].frechet
        assert recoloured[space].kernel > moved[space].kernel


def test_distances_are_computed_in_every_space():
    a, b = small()(draw(20, 3, 8, 8)), small()(draw(18, 3, 8, 8, seed=1) ** 2)
    found = distances(a, b)
    assert tuple(found) == SPACES
    for space, distance in found.items():
        expected = frechet_distance(a[space], b[space])
        assert distance.frechet == pytest.approx(expected) and expected > 0
        assert distance.kernel == pytest.approx(kernel_distance(a[space], b[space]))


def test_distances_of_small_sets_warn():
    features = small()(draw(5, 3, 8, 8))
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
