"""Batches of pictures with freshly drawn captions."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from training.frequencies import say
from training.pictures import describe

EMPTY_CAPTIONS = 0.15
"""Share of long-tailed pictures with an empty caption, for guidance."""

HARDEST, TIMES = "planet", 3
"""A subject that appears TIMES as often in the even half; its rings are a pixel wide."""


class CaptionedPictures(IterableDataset):
    """Yields indices of pictures [B] and the tokens of their captions [B, tokens], endlessly.

    One half of a batch comes from the long-tailed pictures. Their captions mention unusual values,
    so that a sparse prompt stands for the usual values. The other half comes from the even pictures
    with full captions, so that the model learns to draw every value. The indices of the even
    pictures follow the indices of the long-tailed pictures.

    Args:
        data: Output folder of `render.py`.
        tokenizer: Tokenizer of the captions.
        batch_size: B, an even number.
        seed: Random seed; each worker of a loader adds its number.
    """

    def __init__(self, data: Path, tokenizer: CLIPTokenizer, batch_size: int, seed: int = 0):
        self.long_tailed, self.even = (describe(data, split) for split in ("long_tailed", "even"))
        self.repeated = [
            number
            for number, (subject, _) in enumerate(self.even)
            for _ in range(TIMES if subject.name == HARDEST else 1)
        ]
        self.half = batch_size // 2
        self.seed = seed

        @cache
        def tokens(caption: str) -> Tensor:
            encoded = tokenizer(
                caption,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            return encoded.input_ids[0]

        self.tokens = tokens

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        rng = random.Random(self.seed + (worker.id if worker else 0))
        while True:
            yield self.draw(rng)

    def draw(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Returns one batch in random order, because the timestep depends on the position."""
        batch = [self._usual(rng) for _ in range(self.half)]
        batch += [self._full(rng) for _ in range(self.half)]
        rng.shuffle(batch)
        numbers, captions = zip(*batch, strict=True)
        return torch.tensor(numbers), torch.stack([self.tokens(caption) for caption in captions])

    def _usual(self, rng: random.Random) -> tuple[int, str]:
        number = rng.randrange(len(self.long_tailed))
        subject, attributes = self.long_tailed[number]
        if rng.random() < EMPTY_CAPTIONS:
            return number, ""
        return number, subject.caption(say(subject, attributes, rng))

    def _full(self, rng: random.Random) -> tuple[int, str]:
        number = rng.choice(self.repeated)
        subject, attributes = self.even[number]
        return len(self.long_tailed) + number, subject.caption(attributes)
