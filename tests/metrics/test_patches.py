"""The distance of images to a reference, patch by patch."""

import pytest
import torch

from fastrepulse.metrics import PatchReference


def plain(n, side=32, seed=0):
    """Images of two halves, each in one of four grey levels."""
    levels = torch.randint(1, 5, (n, 2), generator=torch.Generator().manual_seed(seed)) / 5
    pictures = torch.empty(n, 3, side, side)
    pictures[..., : side // 2] = levels[:, :1, None, None]
    pictures[..., side // 2 :] = levels[:, 1:, None, None]
    return pictures


def test_the_reference_has_distance_zero_to_itself():
    pictures = plain(24)
    assert PatchReference(pictures).distance(pictures).max() < 2e-3


@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("count", [1, 5])
def test_distance_of_an_image_that_differs_by_a_constant(side, count):
    black = torch.zeros(count, 3, side, side)
    distance = PatchReference(black).distance(black + 0.25)
    assert distance.shape == (count,)
    torch.testing.assert_close(distance, torch.full((count,), 0.25), rtol=0.02, atol=0)


def test_noise_adds_its_size_and_new_combinations_of_patches_add_little():
    reference = PatchReference(plain(64))
    clean = reference.distance(plain(16, seed=1)).mean()
    sizes = [0.01, 0.03, 0.1]
    noise = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    dirty = [reference.distance(plain(16, seed=1) + size * noise).mean() for size in sizes]
    assert clean < 0.01 and all(a < b for a, b in zip([clean, *dirty], dirty, strict=False))
    # Below the noise's size, because the nearest of many patches counts
    assert 0.08 < dirty[-1] < 0.1


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (3, 16, 16)])
def test_an_empty_or_flat_reference_is_refused(shape):
    with pytest.raises(ValueError, match="images must be"):
        PatchReference(torch.zeros(shape))
