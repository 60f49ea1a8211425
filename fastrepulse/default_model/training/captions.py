"""Batches of pictures, each with a caption that is written anew every time."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from fastrepulse.default_model.training.frequencies import say
from fastrepulse.default_model.training.pictures import describe

EMPTY_CAPTIONS = 0.15
"""Share of the long-tailed pictures that are shown without a caption, for guidance."""

HARDEST, TIMES = "planet", 3
"""The subject whose even pictures are shown so many times as often: its rings are a pixel wide."""


class CaptionedPictures(IterableDataset):
    """Draws numbers of pictures [B] and the tokens of their captions [B, tokens], for ever.

    Half of a batch is of the long-tailed world, with captions that mention what is unusual, so that
    a bare prompt means the usual. The other half is of the even world, with full captions, so that
    every value can be drawn when it is asked for. Pictures are numbered through both.

    Args:
        data: A folder with the output of `render.py`.
        tokenizer: For captions.
        batch_size: B, even.
        seed: Of everything drawn; each worker of a loader adds its number.
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
        """Returns one batch, in random order: timesteps are drawn by place in the batch."""
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
