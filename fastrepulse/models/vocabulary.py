"""CLIP's byte-pair vocabulary, read from the package open_clip: no checkpoint contains it."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49_152 - 256 - 2
"""Number of lines of the file that CLIP uses, after the header."""
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Number of tokens of a prompt."""


def clip_tokenizer(pad_token: str) -> Any:
    """Returns the tokenizer of all CLIP text encoders (Radford et al. 2021, arXiv:2103.00020).

    The padding token is `END` in Stable Diffusion 1 and "!" in 2.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    found = find_spec("open_clip")
    if found is None or found.origin is None:
        raise ImportError(
            "a single-file checkpoint contains no vocabulary: install it with `pip install "
            "--no-deps open_clip_torch`, or pass load_model(..., config=folder with a tokenizer)"
        )
    # Importing open_clip would import many other modules
    lines = gzip.decompress((Path(found.origin).parent / FILE).read_bytes()).decode("utf-8")
    merges = [tuple(line.split()) for line in lines.split("\n")[1 : MERGES + 1]]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=LENGTH)
