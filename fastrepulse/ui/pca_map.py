"""A map of all images so far: images with similar embeddings lie close together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE = (720, 540)
THUMBNAIL = 40
MARGIN = 30
FRAMES = ("#c8c8c8", "#d95f02")
"""Colours of the frames around earlier images and around the last batch."""


@dataclass(frozen=True)
class PcaMap:
    """Positions of images by the two principal components of their embeddings."""

    positions: Tensor  # [M, 2], the centres of the images in pixels
    images: Sequence[Image.Image]

    @classmethod
    def of(cls, embedded: Tensor, images: Sequence[Image.Image]) -> "PcaMap":
        """Lays out images by their embeddings [M, d]."""
        rows = embedded.cpu().double()
        rows = rows - rows.mean(dim=0)
        _, _, axes = torch.linalg.svd(rows, full_matrices=False)
        flat = rows @ axes[:2].T
        flat = torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        room = torch.tensor(SIZE, dtype=torch.float64) - 2 * MARGIN
        # One scale for both axes keeps the ratios of distances
        scale = (room / (high - low).clamp_min(1e-9)).min()
        return cls((flat - (low + high) / 2) * scale + torch.tensor(SIZE) / 2, images)

    def sheet(self, last: int) -> Image.Image:
        """Draws the map; the last `last` images have orange frames."""
        sheet = Image.new("RGB", SIZE, "white")
        draw = ImageDraw.Draw(sheet)
        for i, ((x, y), image) in enumerate(zip(self.positions.tolist(), self.images, strict=True)):
            left, top = round(x - THUMBNAIL / 2), round(y - THUMBNAIL / 2)
            sheet.paste(image.resize((THUMBNAIL, THUMBNAIL)), (left, top))
            frame = (left - 2, top - 2, left + THUMBNAIL + 1, top + THUMBNAIL + 1)
            draw.rectangle(frame, outline=FRAMES[i >= len(self.images) - last], width=2)
        return sheet

    def nearest(self, x: float, y: float) -> Image.Image:
        distances = (self.positions - torch.tensor([x, y])).norm(dim=1)
        return self.images[int(distances.argmin())]
