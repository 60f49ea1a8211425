"""The feature spaces in which sets of images are compared: content, location and style.

A. Pondaven, "Repulsion in Stable Diffusion 2" (MSc thesis, Imperial College London, 2023), computes
them from Inception's feature maps. Here they are computed from the judge's (`judge.spaces_of`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fastrepulse.metrics.quality import frechet_distance, kernel_distance

SPACES = ("content", "location", "style")
"""The names of the spaces.

- content: a late layer, averaged over positions.
- location: a middle feature map, averaged over its channels and flattened.
- style: an early feature map, averaged over positions.
"""


def gram(
    feature_map: Tensor,  # [N, C, H, W]
) -> Tensor:
    """Returns the upper triangle of F F^T / (H W), diagonal included, [N, C (C + 1) / 2].

    This is the style of Gatys et al. 2016. It does not depend on the order of the positions.
    """
    flat = feature_map.flatten(2)  # [N, C, H W]
    matrix = flat @ flat.mT / flat.shape[2]  # [N, C, C]
    rows, columns = torch.triu_indices(*matrix.shape[1:], device=matrix.device)
    return matrix[:, rows, columns]


def resized(
    images: Tensor,
    size: int,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Tensor:
    """Resizes and normalises images for an image encoder.

    Args:
        images: Images [N, 3, H, W] in [0, 1].
        size: New side in pixels.
        mean: Mean of each colour channel, subtracted. Default: ImageNet's.
        std: Deviation of each colour channel, the divisor. Default: ImageNet's.

    Returns:
        Images [N, 3, size, size].
    """
    if images.shape[2:] != (size, size):
        images = interpolate(images, (size, size), mode="bilinear", antialias=True)
    offset, scale = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images - offset) / scale


@dataclass(frozen=True)
class Distance:
    """The distances between two sets of images in one space.

    Args:
        frechet: Fréchet distance, at least 0; for small sets it depends on their sizes.
        kernel: Kernel distance; it does not depend on the sizes and can be negative.
    """

    frechet: float
    kernel: float


def distances(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Distance]:
    """Returns the Fréchet and the kernel distance between two sets of images in each space.

    The thesis uses the Fréchet distance to a set of maximum diversity.

    Args:
        a: Features [M, d] by the name of the space.
        b: Features [N, d] in the same spaces, from the same network.

    Returns:
        The distances by the name of the space, in the order of `a`.

    Raises:
        ValueError: If the spaces or their widths differ, or a set has fewer than 2 images.

    Warns:
        SmallSetWarning: If a set has no more images than a space has dimensions.
    """
    if a.keys() != b.keys():
        raise ValueError(f"a and b must have the same spaces, got {list(a)} and {list(b)}")
    return {
        space: Distance(
            frechet_distance(a[space], b[space], allow_small_sets=True),
            kernel_distance(a[space], b[space]),
        )
        for space in a
    }


def to_pictures(images: Sequence[Image.Image]) -> Tensor:
    """Converts PIL images of one size to a tensor [N, 3, H, W] in [0, 1].

    Raises:
        ValueError: If there are no images, or their sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"images must be one or more images of one size, got sizes {sorted(sizes)}"
        )
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
