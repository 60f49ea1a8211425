"""Local folders in diffusers' layout: checks that one is complete, and chooses its weights."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

COMPONENTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
}
"""The networks of every model, with the classes that each may have."""
SECOND_ENCODER = {"text_encoder_2": ("CLIPTextModelWithProjection",)}
"""The additional network of Stable Diffusion XL."""
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
SUPPORTED = "Stable Diffusion 1, 2 and XL"
TENSORS = {
    "missing_keys": "lacks tensors",
    "unexpected_keys": "has unknown tensors",
    "mismatched_keys": "has tensors of another size",
}
"""Loading information of diffusers and transformers, in words."""
PREFERRED = {
    torch.float16: ("fp16", "", "bf16", "non_ema"),
    torch.bfloat16: ("bf16", "", "fp16", "non_ema"),
}
"""Variants of weights for each dtype, the best first; "" is the variant without a name."""

WRAPPER_HINT = (
    "for any other image pipeline of diffusers: "
    "`images = fastrepulse.repel(pipe)(prompt, num_images_per_prompt=16).images`"
)


def check_folder(path: Path) -> None:
    """Raises ValueError if a part of a model is missing or not supported, and names the part."""
    try:
        components = components_of(path)
        index = read_json(path / "model_index.json")
        parts = {part: index[part][1] for part in components}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"model folder {str(path)!r} must have a readable model_index.json with "
            f"{', '.join(COMPONENTS)}: {type(error).__name__}: {error}; {WRAPPER_HINT}"
        ) from None
    for part, accepted in components.items():
        if parts[part] not in accepted:
            raise ValueError(
                f"model folder {str(path)!r} has a {part} of class {parts[part]!r}, "
                f"accepted is {' or '.join(accepted)} ({SUPPORTED}); {WRAPPER_HINT}"
            )
        variants_in(path, part)
    files = [f"{part}/config.json" for part in components] + ["scheduler/scheduler_config.json"]
    try:
        configs = {file: read_json(path / file) for file in files}
    except (OSError, ValueError) as error:
        raise ValueError(f"model folder {str(path)!r} is incomplete: {error}") from None
    second = "text_encoder_2" in components
    for tokenizer in ("tokenizer", "tokenizer_2") if second else ("tokenizer",):
        if not any((path / tokenizer).glob("*.json")):
            raise ValueError(f"model folder {str(path)!r} has no {tokenizer}")
    check_unet(str(path), configs["unet/config.json"], second)
    check_autoencoder(str(path), configs["vae/config.json"], configs["unet/config.json"])
    check_schedule(str(path), configs["scheduler/scheduler_config.json"])


def components_of(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the networks that a folder must hold, with the classes that each may have."""
    second = "text_encoder_2" in read_json(path / "model_index.json")
    return {**COMPONENTS, **SECOND_ENCODER} if second else COMPONENTS


def zeros_for_empty(index: Mapping[str, Any]) -> bool:
    """Returns whether an empty negative prompt is encoded as zeros: XL's pipeline alone can."""
    return "text_encoder_2" in index and bool(index.get("force_zeros_for_empty_prompt", False))


def choose_variants(path: Path, dtype: torch.dtype) -> dict[str, str]:
    """Returns the best variant of each part's weights for a dtype; "" has no name."""
    parts = components_of(path)
    return {part: choose_variant(variants_in(path, part), dtype) for part in parts}


def choose_variant(variants: set[str], dtype: torch.dtype) -> str:
    """Returns the best variant for a dtype."""
    preferred = PREFERRED.get(dtype, ("", "fp16", "bf16", "non_ema"))
    known = [variant for variant in preferred if variant in variants]
    return [*known, *sorted(variants)][0]


def variants_in(path: Path, part: str) -> set[str]:
    """Returns the complete variants of a part's weights; "" has no name."""
    # macOS adds a file "._name" beside each file
    files = [file for file in (path / part).glob("*") if not file.name.startswith(".")]
    for file in files:
        if _index_of(part).fullmatch(file.name):
            missing = [shard for shard in _shards(file) if not (path / part / shard).exists()]
            if missing:
                raise ValueError(
                    f"model folder {str(path)!r} lacks {', '.join(missing)} in {part!r}"
                )
    variants = variants_among([file.name for file in files], part)
    if variants:
        return variants
    pickled = [file.name for file in files if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]
    why = f"; pickled weights ({', '.join(pickled)}) are never loaded" if pickled else ""
    raise ValueError(f"model folder {str(path)!r} has no safetensors weights in {part!r}{why}")


def variants_among(files: Sequence[str], part: str) -> set[str]:
    """Returns the variants of a part's weights in a list of file names."""
    whole = re.compile(rf"{WEIGHTS[part]}(?:\.(\w+))?\.safetensors")
    matches = (form.fullmatch(file) for form in (whole, _index_of(part)) for file in files)
    return {match[1] or "" for match in matches if match}


def weights_files(files: Sequence[str], part: str, variant: str) -> list[str]:
    """Returns the file names that belong to one variant of a part's weights."""
    named = f"\\.{variant}" if variant else ""
    shard = r"(?:-\d+-of-\d+)?"
    own = re.compile(rf"{WEIGHTS[part]}{named}{shard}\.safetensors")
    # Some repositories put the variant after the shard's number
    late = re.compile(rf"{WEIGHTS[part]}{shard}{named}\.safetensors")
    index = f"{WEIGHTS[part]}.safetensors.index{'.' if variant else ''}{variant}.json"
    return [file for file in files if own.fullmatch(file) or late.fullmatch(file) or file == index]


def _index_of(part: str) -> "re.Pattern[str]":
    """A pattern for the name of a sharded part's index; the group is the variant."""
    return re.compile(rf"{WEIGHTS[part]}\.safetensors\.index(?:\.(\w+))?\.json")


def check_loading(name: str, part: str, loading: Mapping[str, Any]) -> None:
    """Raises ValueError if a part's tensors are not those of its configuration; names the first.

    Args:
        name: The model.
        part: The part.
        loading: The loading information of diffusers and transformers.
    """
    for key, what in TENSORS.items():
        found = sorted(each if isinstance(each, str) else each[0] for each in loading[key])
        # Old text encoders saved this counter
        found = [each for each in found if not each.endswith("embeddings.position_ids")]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ValueError(
                f"model {name!r} {what} in its {part}: {found[0]!r}{more}; "
                f"accepted are the tensors of {part}/config.json"
            )


def check_unet(name: str, config: Mapping[str, Any], second: bool = False) -> None:
    """Raises ValueError if a UNet takes more than noisy latents, a timestep and text embeddings.

    Stable Diffusion XL's UNet, with a second text encoder, also takes pooled text embeddings and
    the image size.
    """
    channels = config.get("in_channels"), config.get("out_channels")
    if channels[0] != channels[1]:
        raise ValueError(
            f"model {name!r} has a unet from {channels[0]} to {channels[1]} channels, "
            f"accepted are as many out as in (no inpainting or upscaling); {WRAPPER_HINT}"
        )
    accepted = {
        "addition_embed_type": "text_time" if second else None,
        "class_embed_type": None,
        "encoder_hid_dim_type": None,
        "num_class_embeds": None,
        "time_cond_proj_dim": None,
    }
    for more, kind in accepted.items():
        if config.get(more) != kind:
            raise ValueError(
                f"model {name!r} has a unet with {more} {config.get(more)!r}, "
                f"accepted is {kind!r} ({SUPPORTED}); {WRAPPER_HINT}"
            )


def check_autoencoder(name: str, config: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Raises ValueError if an autoencoder is not between images and the latents of a UNet."""
    accepted = {"in_channels": 3, "out_channels": 3, "latent_channels": unet.get("in_channels", 4)}
    for channels, count in accepted.items():
        if config.get(channels, count) != count:
            raise ValueError(
                f"model {name!r} has a vae with {channels} {config[channels]}, "
                f"accepted is {count}; {WRAPPER_HINT}"
            )


def check_schedule(name: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError if a model was trained with EDM, flow matching or consistency levels."""
    kind = str(config.get("_class_name", ""))
    if kind.startswith(("EDM", "FlowMatch", "CM")):
        raise ValueError(
            f"model {name!r} has a scheduler of class {kind!r}, accepted are those with betas; "
            f"{WRAPPER_HINT}"
        )


def read_json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def _shards(index: Path) -> list[str]:
    """Returns the files in an index of sharded weights."""
    try:
        return sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(index)!r} cannot be read: {error}") from None
