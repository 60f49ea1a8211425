"""The feature spaces in which sets of images are compared: content, location and style.

A. Pondaven, "Repulsion in Stable Diffusion 2" (MSc thesis, Imperial College London, 2023), computes
them from Inception's feature maps. Here they are computed from the feature maps of any network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastrepulse.metrics.quality import frechet_distance, kernel_distance

SPACES = ("content", "location", "style", "style_gram")
"""The names of the spaces. There are two for style."""


@dataclass(frozen=True)
class Backbone:
    """An image network and the layers from which the spaces are computed.

    Layers are named as in `network.named_modules()`. The thesis's widths, with Inception, are in
    brackets:

    - content: a late layer, averaged over positions, [N, C] (2,048).
    - location: a middle feature map, averaged over its channels and flattened, [N, H W] (1,225).
    - style: an early feature map, averaged over positions, [N, C] (64).
    - style_gram: the Gram matrix G = F F^T / (H W) of the same early map F [C, H W], as its upper
      triangle with the diagonal, [N, C (C + 1) / 2] (2,080).

    Args:
        name: Name of the network.
        network: The network, in evaluation mode; takes images [N, 3, size, size].
        content: Layer with output [N, C, H, W] or [N, C], for the content.
        location: Layer with output [N, C, H, W], for the location.
        style: Layer with output [N, C, H, W], for the style and its Gram matrix.
        size: Side of the network's images. Other images are resized bilinearly with antialiasing
            (Parmar et al. 2022, arXiv:2104.11222).
        mean: Subtracted from red, green and blue in [0, 1]. Default 0.5.
        std: Divisor after the subtraction. Default 0.5: the network's input is in [-1, 1].

    Raises:
        ValueError: If the network lacks a layer or is in training mode.
    """

    name: str
    network: nn.Module
    content: str
    location: str
    style: str
    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        layers = dict(self.network.named_modules())
        for space in ("content", "location", "style"):
            if (layer := getattr(self, space)) not in layers:
                raise ValueError(f"{space} must be a layer of the network, got {layer!r}")
        if self.network.training:
            raise ValueError("network must be in evaluation mode, call its eval() first")

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
        """Returns the features of images in each space.

        Args:
            images: Images [N, 3, H, W] in [0, 1], N >= 1.
            batch_size: Images per pass of the network, at least 1. Default 64.

        Returns:
            Features [N, d] by the name of the space, in float32 on the CPU.

        Raises:
            ValueError: If the images are not [N, 3, H, W] in [0, 1], `batch_size` is below 1, or a
                layer's output has a wrong shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise ValueError(f"images must be [N, 3, H, W], got {tuple(images.shape)}")
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                "images must be in [0, 1], got"
                f" [{images.min().item():.4g}, {images.max().item():.4g}]"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        batches = [self._read(batch) for batch in images.split(batch_size)]
        return {space: torch.cat([batch[space] for batch in batches]) for space in SPACES}

    def _read(self, images: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, object] = {}

        def keep(space: str) -> Callable[[nn.Module, object, object], None]:
            def hook(_module: nn.Module, _inputs: object, output: object) -> None:
                # A copy, because a later layer may change the map in place
                outputs[space] = output.clone() if isinstance(output, Tensor) else output

            return hook

        layers = {"content": self.content, "location": self.location, "style": self.style}
        handles = [
            self.network.get_submodule(layer).register_forward_hook(keep(space))
            for space, layer in layers.items()
        ]
        weight = next(self.network.parameters(), images)
        images = images.to(weight.device, torch.float32)
        try:
            self.network(resized(images, self.size, self.mean, self.std).to(weight.dtype))
        finally:
            for handle in handles:
                handle.remove()
        for space in layers:
            if space not in outputs:
                raise ValueError(f"{space} must be a layer that the network's forward pass uses")
        style = _checked(outputs["style"], "style", (4,))
        features = {
            "content": _over_positions(_checked(outputs["content"], "content", (2, 4))),
            "location": _checked(outputs["location"], "location", (4,)).mean(dim=1).flatten(1),
            "style": _over_positions(style),
            "style_gram": gram(style),
        }
        return {space: values.cpu() for space, values in features.items()}


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


def _over_positions(output: Tensor) -> Tensor:
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output


def _checked(output: object, space: str, ranks: tuple[int, ...]) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim not in ranks:
        wanted = " or ".join({2: "[N, C]", 4: "[N, C, H, W]"}[rank] for rank in ranks)
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{space} must be a layer with output {wanted}, got {got}")
    return output.float()


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
        a: Features [M, d] by the name of the space, from a `Backbone`.
        b: Features [N, d] in the same spaces, from the same backbone.

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
