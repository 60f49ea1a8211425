"""How clean pictures are: the distance of their patches to those of a reference."""

import torch
from torch import Tensor
from torch.nn.functional import unfold


class PatchReference:
    """Tells how far pictures are from reference pictures, patch by patch.

    A clean picture is made of patches that reference pictures have too, whatever it shows, while
    mottle, confetti and noise make patches that none of them has. It is the precision of sets of
    pictures (Kynkäänniemi et al. 2019, arXiv:1904.06991) as a distance and of patches, which see
    texture, in place of features, which are trained not to.

    Patches are compared by their largest principal components and the length of what is left, which
    is where fine dirt shows.

    Args:
        pictures: What is clean, [M, 3, H, W] in [0, 1].
        size: Side of a patch in pixels.
        stride: Pixels from one patch of the reference to the next.
        components: How many principal components are kept.
    """

    def __init__(self, pictures: Tensor, size: int = 8, stride: int = 2, components: int = 24):
        if pictures.ndim != 4 or not len(pictures):
            raise ValueError(f"pictures must be [M, 3, H, W], M >= 1, got {list(pictures.shape)}")
        self.size = size
        patches = self._patches(pictures, stride)
        self.mean = patches.mean(dim=0)
        # Patches overlap: every eighth says as much about their directions
        _, _, directions = torch.linalg.svd(patches[::8] - self.mean, full_matrices=False)
        self.directions = directions[:components].mT  # [3 size^2, components]
        # Plain patches are many and alike; a 256th of the range tells none apart that the eye does
        self.features = torch.unique((self._features(patches) * 256 / size).round(), dim=0)
        self.features *= size / 256

    def distance(self, pictures: Tensor, stride: int = 4) -> Tensor:
        """Returns the mean distance of each picture's patches to the nearest of the reference.

        Args:
            pictures: [N, 3, H, W] in [0, 1], H and W at least a patch's size.
            stride: Pixels from one patch to the next.

        Returns:
            Root mean square differences of pixel values, [N].
        """
        features = self._features(self._patches(pictures, stride))
        nearest = torch.cat([self._nearest(rows) for rows in features.split(1024)])
        return nearest.view(len(pictures), -1).mean(dim=1) / len(self.mean) ** 0.5

    def _nearest(self, rows: Tensor) -> Tensor:
        """Returns the distance of each row [n, d] to the nearest of the reference's, [n]."""
        # In pieces that stay in the cache: |a - b|^2 - |a|^2 = |b|^2 - 2 a b
        pieces = [
            torch.addmm(part.square().sum(dim=1), rows, part.mT, alpha=-2).amin(dim=1)
            for part in self.features.split(1024)
        ]
        least = torch.stack(pieces).amin(dim=0) + rows.square().sum(dim=1)
        return least.clamp_min(0).sqrt()

    def _patches(self, pictures: Tensor, stride: int) -> Tensor:
        """Returns all patches, picture after picture, [patches, 3 size^2]."""
        return unfold(pictures.float(), self.size, stride=stride).mT.flatten(0, 1)

    def _features(self, patches: Tensor) -> Tensor:
        centred = patches - self.mean
        main = centred @ self.directions
        rest = (centred.square().sum(dim=1) - main.square().sum(dim=1)).clamp_min(0).sqrt()
        return torch.cat([main, rest[:, None]], dim=1)
