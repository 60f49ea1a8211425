"""All pictures so far on one sheet: those that an embedding finds alike lie close together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = (720, 540)
THUMBNAIL = 40
MARGIN = 30
EDGES = ("#c8c8c8", "#d95f02")
"""Around earlier pictures, and around those of the last batch."""


@dataclass(frozen=True)
class PcaMap:
    """Where pictures lie, by the two principal components of their embeddings.

    Args:
        places: Of each picture on the sheet, [M, 2].
        images: The pictures.
    """

    places: Tensor
    images: Sequence[Image.Image]

    @classmethod
    def of(cls, embedded: Tensor, images: Sequence[Image.Image]) -> "PcaMap":
        """Lays out pictures by their embeddings [M, d]."""
        rows = embedded.double().cpu()
        rows = rows - rows.mean(dim=0)
        _, _, axes = torch.linalg.svd(rows, full_matrices=False)
        flat = rows @ axes[:2].T
        flat = torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        room = torch.tensor(SIZE, dtype=torch.float64) - 2 * MARGIN
        extent = (high - low).clamp_min(1e-9)
        # One scale for both, so that distances are distances
        scale = (room / extent).min()
        middle = (low + high) / 2
        return cls((flat - middle) * scale + torch.tensor(SIZE) / 2, images)

    def sheet(self, last: int) -> Image.Image:
        """Returns the map, the last so many pictures in a frame of their own colour."""
        sheet = Image.new("RGB", SIZE, "white")
        draw = ImageDraw.Draw(sheet)
        for i, ((x, y), image) in enumerate(zip(self.places.tolist(), self.images, strict=True)):
            left, top = round(x - THUMBNAIL / 2), round(y - THUMBNAIL / 2)
            sheet.paste(image.resize((THUMBNAIL, THUMBNAIL)), (left, top))
            edge = (left - 2, top - 2, left + THUMBNAIL + 1, top + THUMBNAIL + 1)
            draw.rectangle(edge, outline=EDGES[i >= len(self.images) - last], width=2)
        return sheet

    def blend(self, x: float, y: float) -> Image.Image:
        """Returns a mixture of all pictures that lies at a place on the sheet.

        Its shares w are the least, in the sum of their squares, with sum w = 1 and
        sum w (x_i, y_i) = (x, y); beyond the edge some are below 0. What is linear in the pictures
        lies where it was asked to lie.
        """
        ones = torch.ones(len(self.places), 1, dtype=torch.float64)
        corners = torch.cat([self.places, ones], dim=1)  # [M, 3]
        wanted = torch.tensor([x, y, 1.0], dtype=torch.float64)
        shares = torch.linalg.pinv(corners.T) @ wanted
        pictures = np.stack([np.asarray(image.convert("RGB")) for image in self.images])
        mixed = np.tensordot(shares.numpy(), pictures, axes=1)
        return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8))
