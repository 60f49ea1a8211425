"""How well pictures fit their prompts, by CLIP."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


@torch.no_grad()
def clip_score(
    images: Sequence[Image.Image],
    prompts: str | Sequence[str],
    model: str | Path,
    batch_size: int = 32,
) -> float:
    """Returns the mean CLIP score: 100 max(0, cos(picture, prompt)) (Hessel et al. 2021).

    Args:
        images: The pictures, N >= 1 of them, of any size.
        prompts: One prompt for all the pictures, or one for each.
        model: A folder with a CLIP model as transformers saves it: weights as safetensors,
            tokenizer and image processor.
        batch_size: Pictures that go through the model at once, at least 1. Default 32.

    Returns:
        The mean over pictures, in [0, 100].

    Raises:
        ValueError: If there are no pictures, not as many prompts as pictures, or `model` is no
            folder.
        OSError: If the folder holds no such model.
    """
    if len(images) == 0:
        raise ValueError("images must hold at least one picture, got none")
    prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if len(prompts) != len(images):
        raise ValueError(f"prompts must be one or {len(images)}, got {len(prompts)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not Path(model).is_dir():
        raise ValueError(f"model must be a folder with a CLIP model, got {str(model)!r}")

    clip, processor = _load(str(model))
    total = 0.0
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        inputs = processor(
            images=list(images[batch]),
            text=prompts[batch],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        outputs = clip(**inputs)
        cosines = cosine_similarity(outputs.image_embeds, outputs.text_embeds)
        total += cosines.clamp_min(0).sum().item()
    return 100 * total / len(images)


@cache
def _load(folder: str) -> "tuple[CLIPModel, CLIPProcessor]":
    # Here, because importing fastrepulse must not load transformers
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return model.eval(), CLIPProcessor.from_pretrained(folder, local_files_only=True)
