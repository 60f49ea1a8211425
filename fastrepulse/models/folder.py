"""A local folder in diffusers' layout: is it whole, and which of its weights suit."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
PREFERRED = {
    torch.float16: ("fp16", "", "bf16", "non_ema"),
    torch.bfloat16: ("bf16", "", "fp16", "non_ema"),
}
"""Variants of weights for a dtype, the best first; the plain one has no name."""

WRAP = (
    "for any other pipeline of diffusers wrap its scheduler: "
    "`from fastrepulse.integrations import RepulsiveScheduler`; "
    "`pipe.scheduler = RepulsiveScheduler(pipe.scheduler)`; "
    "`images = pipe(prompt, num_images_per_prompt=16).images`"
)


def check_folder(path: Path) -> None:
    """Raises unless a folder holds a Stable Diffusion 1 or 2 type model with safetensors weights.

    Raises:
        ValueError: Names what is missing or of another kind.
    """
    try:
        index = json.loads((path / "model_index.json").read_text("utf-8"))
        parts = {part: index[part][1] for part in COMPONENTS}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"model folder {str(path)!r} needs a readable model_index.json that names "
            f"{', '.join(COMPONENTS)}: {type(error).__name__}: {error}; {WRAP}"
        ) from None
    for part, accepted in COMPONENTS.items():
        if parts[part] != accepted:
            raise ValueError(
                f"model folder {str(path)!r} has a {part} of class {parts[part]!r}, "
                f"accepted is {accepted!r} (Stable Diffusion 1 and 2); {WRAP}"
            )
        variants_in(path, part)
    files = [f"{part}/config.json" for part in COMPONENTS] + ["scheduler/scheduler_config.json"]
    try:
        configs = {file: json.loads((path / file).read_text("utf-8")) for file in files}
    except (OSError, ValueError) as error:
        raise ValueError(f"model folder {str(path)!r} is incomplete: {error}") from None
    if not any((path / "tokenizer").glob("*.json")):
        raise ValueError(f"model folder {str(path)!r} has no tokenizer")
    check_unet(str(path), configs["unet/config.json"])


def choose_variants(path: Path, dtype: torch.dtype) -> dict[str, str]:
    """Returns the variant of every part's weights that suits a dtype; "" for the plain one."""
    preferred = PREFERRED.get(dtype, ("", "fp16", "bf16", "non_ema"))
    chosen = {}
    for part in COMPONENTS:
        variants = variants_in(path, part)
        known = [variant for variant in preferred if variant in variants]
        chosen[part] = [*known, *sorted(variants)][0]
    return chosen


def variants_in(path: Path, part: str) -> set[str]:
    """Returns the variants of a part's weights that are whole; "" stands for the plain one.

    Raises:
        ValueError: If there is none.
    """
    name = re.compile(rf"{WEIGHTS[part]}(?:\.(\w+))?\.safetensors")
    index = re.compile(rf"{WEIGHTS[part]}\.safetensors\.index(?:\.(\w+))?\.json")
    # Beside the weights a copy from a Mac has files of their names with "._" before
    files = [file for file in (path / part).glob("*") if not file.name.startswith(".")]
    variants = set()
    for file in files:
        if match := name.fullmatch(file.name):
            variants.add(match[1] or "")
        elif match := index.fullmatch(file.name):
            missing = [shard for shard in _shards(file) if not (path / part / shard).exists()]
            if missing:
                raise ValueError(
                    f"model folder {str(path)!r} lacks {', '.join(missing)} in {part!r}"
                )
            variants.add(match[1] or "")
    if variants:
        return variants
    pickled = [file.name for file in files if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]
    why = f"; pickled weights ({', '.join(pickled)}) are never loaded" if pickled else ""
    raise ValueError(f"model folder {str(path)!r} has no safetensors weights in {part!r}{why}")


def check_unet(name: str, config: Mapping[str, Any]) -> None:
    """Raises unless a UNet is told nothing but noisy latents, a timestep and a text."""
    channels = config.get("in_channels"), config.get("out_channels")
    if channels[0] != channels[1]:
        raise ValueError(
            f"model {name!r} has a unet from {channels[0]} to {channels[1]} channels, "
            f"accepted are as many out as in (no inpainting or upscaling); {WRAP}"
        )
    for more in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(more) is not None:
            raise ValueError(
                f"model {name!r} has a unet with {more} {config[more]!r}, "
                f"accepted is none (Stable Diffusion 1 and 2); {WRAP}"
            )


def _shards(index: Path) -> list[str]:
    """Returns the files that an index of sharded weights names.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(index)!r} cannot be read: {error}") from None
