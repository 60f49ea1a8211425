"""Artefacts of three kinds, such as a push leaves; they must not count as diversity."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, pad


def mottle(
    pictures: Tensor,  # [N, C, H, W] in [-1, 1]
    amount: float | Tensor,
    cell: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adds blotches of colour that are about `cell` pixels wide.

    Args:
        pictures: The pictures, [N, C, H, W] in [-1, 1].
        amount: Standard deviation of the blotches before smoothing, a number or one for each
            picture [N]. 0.1 is visible on a plain background.
        cell: Distance of neighbouring blotches in pixels.
        generator: Random generator.
    """
    n, channels, height, width = pictures.shape
    coarse = (n, channels, height // cell + 1, width // cell + 1)
    blotches = _randn(coarse, pictures, generator)
    smooth = interpolate(blotches, size=(height, width), mode="bicubic", align_corners=True)
    return (pictures + _each(amount, pictures) * smooth).clamp(-1, 1)


def noise(
    pictures: Tensor, amount: float | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Adds independent noise with standard deviation `amount` to every pixel."""
    return (pictures + _each(amount, pictures) * _randn(pictures.shape, pictures, generator)).clamp(
        -1, 1
    )


def confetti(
    pictures: Tensor,
    amount: float | Tensor,
    size: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scatters small squares of random colours.

    Args:
        pictures: The pictures, [N, C, H, W] in [-1, 1].
        amount: Covered share of the area, a number or one for each picture [N].
        size: Side of a square in pixels.
        generator: Random generator.
    """
    n, channels, height, width = pictures.shape
    seeds = _rand((n, 1, height, width), pictures, generator) < _each(amount, pictures) / size**2
    # A pixel near a seed gets its colour from a coarse random field
    covered = max_pool2d(pad(seeds.float(), (size - 1, 0, size - 1, 0)), size, stride=1) > 0
    coarse = (n, channels, -(-height // size), -(-width // size))
    colours = 2 * _rand(coarse, pictures, generator) - 1
    colours = interpolate(colours, scale_factor=float(size))[:, :, :height, :width]
    return torch.where(covered, colours, pictures)


KINDS = {"mottle": mottle, "noise": noise, "confetti": confetti}


def _each(amount: float | Tensor, pictures: Tensor) -> Tensor:
    return torch.as_tensor(amount).to(pictures).reshape(-1, 1, 1, 1)


def _randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    # Drawn on the generator's device, so that a seed gives the same artefacts on every device
    device = generator.device if generator else like.device
    return torch.randn(shape, generator=generator, device=device).to(like)


def _rand(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator else like.device
    return torch.rand(shape, generator=generator, device=device).to(like)
