"""How clean images are: the distance of their patches to the patches of reference images."""

import torch
from torch import Tensor
from torch.nn.functional import unfold


class PatchReference:
    """Measures how far images are from reference images, patch by patch.

    Every patch of a clean image resembles a patch of some reference image, whatever the image
    shows. Mottle, confetti and noise make patches that no reference image has. This is the
    precision of image sets (Kynkäänniemi et al. 2019, arXiv:1904.06991) as a distance, computed on
    patches instead of features, because networks are trained to ignore texture.

    A patch is compared by its largest principal components and by the norm of the remainder. Fine
    artefacts show up in the remainder.

    Args:
        images: The clean reference, [M, 3, H, W] in [0, 1].
        size: Side of a patch in pixels.
        stride: Pixels between neighbouring patches of the reference.
        components: Number of principal components.
    """

    def __init__(self, images: Tensor, size: int = 8, stride: int = 2, components: int = 24):
        if images.ndim != 4 or not len(images):
            raise ValueError(f"images must be [M, 3, H, W], M >= 1, got {list(images.shape)}")
        self.size = size
        patches = self._patches(images, stride)
        self.mean = patches.mean(dim=0)
        # Patches overlap, so every eighth one suffices to find the components
        _, _, directions = torch.linalg.svd(patches[::8] - self.mean, full_matrices=False)
        self.directions = directions[:components].mT  # [3 size^2, components]
        # Many patches are plain. Rounding to 1/256 of the range merges them
        self.features = torch.unique((self._features(patches) * 256 / size).round(), dim=0)
        self.features *= size / 256

    def distance(self, images: Tensor, stride: int = 4) -> Tensor:
        """Returns each image's mean distance from its patches to the nearest reference patches.

        Args:
            images: [N, 3, H, W] in [0, 1], H and W at least `size`.
            stride: Pixels between neighbouring patches.

        Returns:
            Root mean square differences of pixel values, [N].
        """
        features = self._features(self._patches(images, stride))
        nearest = torch.cat([self._nearest(rows) for rows in features.split(1024)])
        return nearest.view(len(images), -1).mean(dim=1) / len(self.mean) ** 0.5

    def _nearest(self, rows: Tensor) -> Tensor:
        """Returns the distance of each row [n, d] to the nearest reference row, [n]."""
        # In chunks that fit the cache: |a - b|^2 - |a|^2 = |b|^2 - 2 a b
        pieces = [
            torch.addmm(part.square().sum(dim=1), rows, part.mT, alpha=-2).amin(dim=1)
            for part in self.features.split(1024)
        ]
        least = torch.stack(pieces).amin(dim=0) + rows.square().sum(dim=1)
        return least.clamp_min(0).sqrt()

    def _patches(self, images: Tensor, stride: int) -> Tensor:
        """Returns the patches of all images in order, [patches, 3 size^2]."""
        return unfold(images.float(), self.size, stride=stride).mT.flatten(0, 1)

    def _features(self, patches: Tensor) -> Tensor:
        centred = patches - self.mean
        main = centred @ self.directions
        rest = (centred.square().sum(dim=1) - main.square().sum(dim=1)).clamp_min(0).sqrt()
        return torch.cat([main, rest[:, None]], dim=1)
