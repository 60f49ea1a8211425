"""Prompts as a UNet is told of them: text embeddings of one text encoder, or of two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrepulse.models.prompts import tokenize


@dataclass(frozen=True)
class Text:
    """Text embeddings of prompts.

    Args:
        tokens: One embedding a token, [prompts, tokens, width].
        pooled: One of each prompt as a whole, [prompts, width]; None where the UNet takes none.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    @classmethod
    def cat(cls, parts: "Sequence[Text]") -> "Text":
        """Returns those of all prompts, part after part."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(
            torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None
        )

    def of(self, prompts: Sequence[int] | Tensor) -> "Text":
        """Returns the embeddings of some prompts, by number."""
        return Text(self.tokens[prompts], None if self.pooled is None else self.pooled[prompts])

    def to(self, dtype: torch.dtype) -> "Text":
        """Returns them in another dtype."""
        return Text(self.tokens.to(dtype), None if self.pooled is None else self.pooled.to(dtype))

    def zeroed(self, prompts: Sequence[bool]) -> "Text":
        """Returns them with zeros for some prompts."""
        kept = ~torch.tensor(prompts, device=self.tokens.device)
        pooled = None if self.pooled is None else self.pooled * kept[:, None]
        return Text(self.tokens * kept[:, None, None], pooled)


def encode(tokenizer: Any, encoder: Any, prompts: Sequence[str], chunks: int) -> Text:
    """Returns the text embeddings of Stable Diffusion 1 and 2: the encoder's last layer.

    Args:
        tokenizer: `CLIPTokenizer`.
        encoder: `CLIPTextModel`.
        prompts: Any number of them.
        chunks: Of how many chunks, each as long as the encoder takes; one is what fits.
    """
    ids, mask = _tokens(tokenizer, encoder, prompts, chunks)
    masked = getattr(encoder.config, "use_attention_mask", False)
    embeddings = encoder(ids, attention_mask=mask if masked else None)[0]
    return Text(_joined(embeddings, len(prompts)))


def encode_xl(
    tokenizers: Sequence[Any], encoders: Sequence[Any], prompts: Sequence[str], chunks: int
) -> Text:
    """Returns those of Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952).

    The layers before the last of both encoders lie side by side; pooled is the last encoder's
    projection of the first chunk.
    """
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        # Both cut alike: one warning is enough
        ids, _ = _tokens(tokenizer, encoder, prompts, chunks, warns=not hidden)
        output = encoder(ids, output_hidden_states=True)
        hidden.append(_joined(output.hidden_states[-2], len(prompts)))
        pooled = output[0][::chunks]
    return Text(torch.cat(hidden, dim=-1), pooled)


def _tokens(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], chunks: int, warns: bool = True
) -> tuple[Tensor, Tensor]:
    """Returns tokens and their mask, [prompts * chunks, longest], where the encoder lies."""
    longest = encoder.config.max_position_embeddings
    ids, mask = tokenize(tokenizer, prompts, longest, chunks, warns)
    return ids.flatten(0, 1).to(encoder.device), mask.flatten(0, 1).to(encoder.device)


def _joined(embeddings: Tensor, prompts: int) -> Tensor:
    """Returns [prompts, chunks * tokens, width] of [prompts * chunks, tokens, width]."""
    return embeddings.reshape(prompts, -1, embeddings.shape[-1])
