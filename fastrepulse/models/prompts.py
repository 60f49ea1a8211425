"""Tokens of prompts, with warnings about cut-off ends and unknown words."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrepulse.default_model.subjects import SUBJECTS

log = logging.getLogger("fastrepulse")


def tokenize(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], chunks: int, warns: bool = True
) -> tuple[Tensor, Tensor]:
    """Returns token ids and the attention mask; a warning names text that is cut off.

    Both are [len(prompts) * chunks, length of a chunk], on the encoder's device. Each chunk has a
    start and an end token. A short prompt leaves the last chunks empty.
    """
    room = room_in_chunk(tokenizer, encoder)
    longest, limit = room + 2, chunks * room
    cuts_left = tokenizer.truncation_side == "left"
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    pads_left = tokenizer.padding_side == "left"
    rows: list[list[int]] = []
    kept: list[list[int]] = []
    for words in _words(tokenizer, prompts):
        if warns and len(words) > limit:
            log.warning(
                "a prompt has %d tokens and the text encoder takes %d: cut off is %r",
                len(words) + 2 * chunks,
                longest * chunks,
                tokenizer.decode(words[:-limit] if cuts_left else words[limit:]).strip(),
            )
        words = words[-limit:] if cuts_left else words
        for chunk in range(chunks):
            own = words[chunk * room : (chunk + 1) * room]
            own = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id]
            count = longest - len(own)
            for kind, values, filler in ((rows, own, pad), (kept, [1] * len(own), 0)):
                filling = [filler] * count
                kind.append(filling + values if pads_left else values + filling)
    return torch.tensor(rows, device=encoder.device), torch.tensor(kept, device=encoder.device)


def room_in_chunk(tokenizer: Any, encoder: Any) -> int:
    """Returns the number of tokens between the start and the end token of a chunk."""
    return min(encoder.config.max_position_embeddings, tokenizer.model_max_length) - 2


def chunks_of(tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> int:
    """Returns how many chunks the longest prompt needs."""
    room = room_in_chunk(tokenizer, encoder)
    return max(1, *(-(-len(words) // room) for words in _words(tokenizer, prompts)))


def _words(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Returns the token ids of prompts without start and end tokens."""
    expanded = [expand_tokens(tokenizer, prompt) for prompt in prompts]
    return tokenizer(expanded, truncation=False, add_special_tokens=False, verbose=False).input_ids


def expand_tokens(tokenizer: Any, prompt: str) -> str:
    """Replaces a textual-inversion token of several vectors by all of its tokens.

    Textual inversion (Gal et al. 2022, arXiv:2208.01618) adds them to a tokenizer as "<cat>",
    "<cat>_1", ...; a prompt contains only the first.
    """
    added = tokenizer.get_added_vocab()
    for token in added:
        if token in prompt and f"{token}_1" in added:
            count = next(i for i in range(1, len(added) + 1) if f"{token}_{i}" not in added)
            parts = [token, *(f"{token}_{i}" for i in range(1, count))]
            prompt = prompt.replace(token, " ".join(parts))
    return prompt


def check_words(prompts: Sequence[str], vocabulary: frozenset[str] | None) -> None:
    """Warns of words outside the model's vocabulary; None stands for a model that knows all."""
    if vocabulary is None:
        return
    for prompt in prompts:
        unknown = [word for word in re.findall(r"\w+", prompt.lower()) if word not in vocabulary]
        if unknown:
            *most, last = [subject.prompt for subject in SUBJECTS]
            log.warning(
                "the shipped model never learnt %s; it draws %s and %s (model= takes others)",
                ", ".join(map(repr, unknown)),
                ", ".join(most),
                last,
            )
