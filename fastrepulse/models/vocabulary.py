"""The byte-pair vocabulary of CLIP, which no checkpoint holds, from a package that ships it."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49_152 - 256 - 2
"""How many of its lines CLIP uses, after the first one."""
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""The tokens of a prompt that CLIP takes."""


def clip_tokenizer(pad_token: str) -> Any:
    """Returns the tokenizer of all CLIP text encoders (Radford et al. 2021, arXiv:2103.00020).

    Args:
        pad_token: What fills a prompt up: the end mark in Stable Diffusion 1, "!" in 2.

    Raises:
        ImportError: If open_clip, which has the vocabulary, is not installed.
    """
    from transformers import CLIPTokenizer

    found = find_spec("open_clip")
    if found is None or found.origin is None:
        raise ImportError(
            "a single-file checkpoint holds no vocabulary: `pip install --no-deps open_clip_torch` "
            "brings it, or load_model(..., config=a folder of such a model, with its tokenizer)"
        )
    # Its module is not imported: it would bring half a training library
    lines = gzip.decompress((Path(found.origin).parent / FILE).read_bytes()).decode("utf-8")
    merges = [tuple(line.split()) for line in lines.split("\n")[1 : MERGES + 1]]
    letters = list(_letters().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=LENGTH)


def _letters() -> dict[int, str]:
    """Returns the letter that stands for each byte, in the vocabulary's order: printable first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }
