"""The spaces in which sets of pictures are compared: what they show, where, and in which style.

After A. Pondaven, "Repulsion in Stable Diffusion 2" (MSc thesis, Imperial College London, 2023),
who read them off Inception's feature maps; here off those of any network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastrepulse.metrics.quality import frechet_distance, kernel_distance

SPACES = ("content", "location", "style", "style_gram")
"""The names of the spaces; style has two."""


@dataclass(frozen=True)
class Backbone:
    """A network for pictures, and at which of its layers each space is read.

    Layers are named as in `network.named_modules()`. With Inception's the widths are the thesis's:

    - content: what is shown. A late layer, averaged over positions: [N, C] (2,048).
    - location: where something is. A middle feature map, averaged over its channels and flattened:
      [N, H W] (192 x 35 x 35 gives 1,225).
    - style: an early feature map, averaged over positions: [N, C] (64 x 73 x 73 gives 64).
    - style_gram: the Gram matrix of the same early map F [C, H W], G = F F^T / (H W), that is the
      mean over positions of the product of each two channels; its upper triangle with the diagonal:
      [N, C (C + 1) / 2] (2,080).

    Args:
        name: What tables and reports call it.
        network: The network, in evaluation mode; takes pictures [N, 3, size, size].
        content: The layer whose output [N, C, H, W] or [N, C] is the content.
        location: The layer whose output [N, C, H, W] gives the location.
        style: The layer whose output [N, C, H, W] gives the style and its Gram matrix.
        size: Side of the pictures that the network takes; others are resized, bilinearly with
            antialiasing (Parmar et al. 2022, arXiv:2104.11222).
        mean: What is subtracted from red, green and blue in [0, 1]. Default 0.5.
        std: What they are divided by then. Default 0.5, so that the network is given [-1, 1].

    Raises:
        ValueError: If the network has no such layer, or is in training mode.
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
    def __call__(self, pictures: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
        """Returns the features of pictures in each of the spaces.

        Args:
            pictures: [N, 3, H, W] in [0, 1], N >= 1.
            batch_size: Pictures that go through the network at once, at least 1. Default 64.

        Returns:
            Features [N, d] by the name of the space, in float32 on the CPU.

        Raises:
            ValueError: If the pictures are not [N, 3, H, W] in [0, 1], `batch_size` is below 1, or
                a layer's output is not of the shape that its space needs.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or len(pictures) == 0:
            raise ValueError(f"pictures must be [N, 3, H, W], got {tuple(pictures.shape)}")
        if not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError(
                "pictures must be in [0, 1], got"
                f" [{pictures.min().item():.4g}, {pictures.max().item():.4g}]"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        batches = [self._read(batch) for batch in pictures.split(batch_size)]
        return {space: torch.cat([batch[space] for batch in batches]) for space in SPACES}

    def _read(self, pictures: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}

        # Read while the network runs: a later layer may work in place on the same map
        def read_content(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            features["content"] = _over_positions(_output(output, "content", (2, 4)))

        def read_location(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            features["location"] = _output(output, "location", (4,)).mean(dim=1).flatten(1)

        def read_style(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            feature_map = _output(output, "style", (4,))
            features["style"] = _over_positions(feature_map)
            features["style_gram"] = gram(feature_map)

        layer = self.network.get_submodule
        handles = [
            layer(self.content).register_forward_hook(read_content),
            layer(self.location).register_forward_hook(read_location),
            layer(self.style).register_forward_hook(read_style),
        ]
        try:
            self.network(self._normalised(pictures))
        finally:
            for handle in handles:
                handle.remove()
        if missing := [space for space in SPACES if space not in features]:
            raise ValueError(f"{missing[0]} must be a layer that the network runs")
        return {space: values.float().cpu() for space, values in features.items()}

    def _normalised(self, pictures: Tensor) -> Tensor:
        weight = next(self.network.parameters(), pictures)
        pictures = pictures.to(weight.device, torch.float32)
        return resized(pictures, self.size, self.mean, self.std).to(weight.dtype)


def gram(
    feature_map: Tensor,  # [N, C, H, W]
) -> Tensor:
    """Returns the upper triangle of F F^T / (H W), diagonal included, [N, C (C + 1) / 2].

    The style of Gatys et al. 2016: which channels are active at the same positions, wherever those
    are.
    """
    flat = feature_map.flatten(2)  # [N, C, H W]
    matrix = flat @ flat.mT / flat.shape[2]  # [N, C, C]
    rows, columns = torch.triu_indices(*matrix.shape[1:], device=matrix.device)
    return matrix[:, rows, columns]


def resized(
    pictures: Tensor,
    size: int,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Tensor:
    """Returns pictures [N, 3, size, size], normalised as an image encoder wants them.

    Args:
        pictures: [N, 3, H, W] in [0, 1].
        size: Of a side, in pixels.
        mean: Of each colour, subtracted; by default ImageNet's.
        std: Of each colour, divided by; by default ImageNet's.
    """
    if pictures.shape[2:] != (size, size):
        pictures = interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    offset, scale = (pictures.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pictures - offset) / scale


def _over_positions(output: Tensor) -> Tensor:
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output.clone()


def _output(output: object, space: str, ranks: tuple[int, ...]) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim not in ranks:
        wanted = " or ".join({2: "[N, C]", 4: "[N, C, H, W]"}[rank] for rank in ranks)
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{space} must be a layer whose output is {wanted}, got {got}")
    return output.float()


@dataclass(frozen=True)
class Distance:
    """How far two sets of pictures are from each other in one space.

    Args:
        frechet: Fréchet distance, at least 0; depends on the sizes of small sets.
        kernel: Kernel distance; does not, and may be below 0.
    """

    frechet: float
    kernel: float


def distances(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Distance]:
    """Returns the Fréchet and the kernel distance of two sets of pictures in each space.

    The thesis measures by the first how near a set is to one of maximum diversity.

    Args:
        a: Features [M, d] by the name of the space, as a `Backbone` returns them.
        b: Features [N, d] in the same spaces, of the same backbone.

    Returns:
        The distances by the name of the space, in the order of `a`.

    Raises:
        ValueError: If the spaces or their widths differ, or a set has fewer than 2 pictures.

    Warns:
        SmallSetWarning: If a set has no more pictures than a space has dimensions.
    """
    if a.keys() != b.keys():
        raise ValueError(f"a and b must be of the same spaces, got {list(a)} and {list(b)}")
    return {
        space: Distance(
            frechet_distance(a[space], b[space], allow_small_sets=True),
            kernel_distance(a[space], b[space]),
        )
        for space in a
    }


def to_pictures(images: Sequence[Image.Image]) -> Tensor:
    """Turns PIL images of one size into pictures [N, 3, H, W] in [0, 1].

    Raises:
        ValueError: If there are none, or their sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images must be of one size, at least one, got sizes {sorted(sizes)}")
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
