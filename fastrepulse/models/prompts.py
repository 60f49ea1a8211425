"""Prompts on their way to a text encoder: what does not fit, and what it never learnt."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastrepulse.default_model.subjects import SUBJECTS

log = logging.getLogger("fastrepulse")


def tokenize(tokenizer: Any, prompts: Sequence[str], longest: int) -> Any:
    """Returns tokens [len(prompts), longest]; warns of what does not fit and is cut off.

    Args:
        tokenizer: `CLIPTokenizer`.
        prompts: Any number of them.
        longest: How many tokens the text encoder takes; fewer if the tokenizer says so.
    """
    longest = min(longest, tokenizer.model_max_length)
    prompts = [spell_out(tokenizer, prompt) for prompt in prompts]
    for whole in tokenizer(prompts, truncation=False, verbose=False).input_ids:
        if len(whole) > longest:
            # The last token that is kept marks the end
            lost = tokenizer.decode(whole[longest - 1 : -1]).strip()
            log.warning(
                "a prompt has %d tokens and the text encoder takes %d: cut off is %r",
                len(whole),
                longest,
                lost,
            )
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=longest,
        truncation=True,
        return_tensors="pt",
    )


def spell_out(tokenizer: Any, prompt: str) -> str:
    """Returns a prompt with learnt tokens of several vectors at full length.

    Textual inversion (Gal et al. 2022, arXiv:2208.01618) adds them to a tokenizer as "<cat>",
    "<cat>_1", ...; a prompt names the first alone.
    """
    added = tokenizer.get_added_vocab()
    for token in added:
        if token in prompt and f"{token}_1" in added:
            count = next(i for i in range(1, len(added) + 1) if f"{token}_{i}" not in added)
            parts = [token, *(f"{token}_{i}" for i in range(1, count))]
            prompt = prompt.replace(token, " ".join(parts))
    return prompt


def check_words(prompts: Sequence[str], vocabulary: frozenset[str] | None) -> None:
    """Warns of words that a model with few words does not know."""
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
