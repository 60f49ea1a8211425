"""Text embeddings of prompts, from one text encoder or two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models.prompts import tokenize


@dataclass(frozen=True)
class Text:
    """Text embeddings of every token, and of every prompt for a UNet that uses those."""

    tokens: Tensor  # [prompts, tokens, width]
    pooled: Tensor | None = None  # [prompts, width]

    @classmethod
    def cat(cls, parts: "Sequence[Text]") -> "Text":
        """Concatenates text embeddings along the prompts."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(
            torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None
        )

    def of(self, prompts: Sequence[int] | Tensor) -> "Text":
        """Selects prompts by index."""
        return Text(self.tokens[prompts], None if self.pooled is None else self.pooled[prompts])

    def to(self, dtype: torch.dtype) -> "Text":
        return Text(self.tokens.to(dtype), None if self.pooled is None else self.pooled.to(dtype))

    def zeroed(self, prompts: Sequence[bool]) -> "Text":
        """Replaces the embeddings of the marked prompts by zeros."""
        kept = ~torch.tensor(prompts, device=self.tokens.device)
        pooled = None if self.pooled is None else self.pooled * kept[:, None]
        return Text(self.tokens * kept[:, None, None], pooled)


def encode(tokenizer: Any, encoder: Any, prompts: Sequence[str], chunks: int) -> Text:
    """Returns the text embeddings of Stable Diffusion 1 and 2: the encoder's last layer."""
    ids, mask = tokenize(tokenizer, encoder, prompts, chunks)
    masked = getattr(encoder.config, "use_attention_mask", False)
    embeddings = encoder(ids, attention_mask=mask if masked else None)[0]
    return Text(_joined(embeddings, len(prompts)))


def encode_xl(
    tokenizers: Sequence[Any], encoders: Sequence[Any], prompts: Sequence[str], chunks: int
) -> Text:
    """Returns the text embeddings of Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952).

    The token embeddings concatenate the second to last layers of both encoders. The pooled
    embedding is the second encoder's projection of the first chunk.
    """
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        # Both encoders cut off the same text: one warning is enough
        ids, _ = tokenize(tokenizer, encoder, prompts, chunks, warns=not hidden)
        output = encoder(ids, output_hidden_states=True)
        hidden.append(_joined(output.hidden_states[-2], len(prompts)))
        pooled = output[0][::chunks]
    lengths = [each.shape[1] for each in hidden]
    if len(set(lengths)) > 1:
        raise ValueError(
            "tokenizer and tokenizer_2 must take prompts of one length, got "
            f"{' and '.join(map(str, lengths))} tokens"
        )
    return Text(torch.cat(hidden, dim=-1), pooled)


def _joined(embeddings: Tensor, prompts: int) -> Tensor:
    """Reshapes [prompts * chunks, tokens, width] to [prompts, chunks * tokens, width]."""
    return embeddings.reshape(prompts, -1, embeddings.shape[-1])
