"""Single-file checkpoints, as sharing sites have them: their kind, prediction and parts."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastrepulse.models.folder import KINDS, WRAP
from fastrepulse.models.vocabulary import END, clip_tokenizer

CONFIGURATIONS = Path(__file__).parent / "configurations"
PREDICTIONS = ("epsilon", "v_prediction")
UNET = "model.diffusion_model."
DECODER = "first_stage_model.decoder.conv_in.weight"
V_SIZE = 96
"""Latents along a side of Stable Diffusion 2 with v-prediction: it was trained at 768 pixels."""

log = logging.getLogger("fastrepulse")


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Args:
        folder: Of its configurations.
        marks: How the names of its text encoders' weights begin, one for each.
        pads: What fills prompts up, for each text encoder.
        pipeline: diffusers' class.
        certain: Whether next to all of its kind predict the noise.
    """

    folder: str
    marks: tuple[str, ...]
    pads: tuple[str, ...]
    pipeline: str
    certain: bool


SD1 = Kind("sd1", ("cond_stage_model.transformer.",), (END,), "StableDiffusionPipeline", True)
SD2 = Kind("sd2", ("cond_stage_model.model.",), ("!",), "StableDiffusionPipeline", False)
XL = Kind(
    "xl",
    ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    (END, "!"),
    "StableDiffusionXLPipeline",
    True,
)


def read_file(
    path: Path, dtype: torch.dtype, prediction_type: str | None, config: Path | None
) -> Any:
    """Returns the diffusers pipeline that a checkpoint's parts make, on the CPU.

    Args:
        path: A safetensors file.
        dtype: Of the weights.
        prediction_type: What it predicts, one of `PREDICTIONS`; None for what the file says.
        config: A folder in diffusers' layout that says what the file does not, its tokenizers
            among it; None for the shipped configurations and an installed vocabulary.

    Raises:
        ValueError: If it is of no accepted kind or incomplete, or does not say what it predicts.
        ImportError: If there is no vocabulary.
    """
    import diffusers

    shapes, metadata = _header(path)
    kind = kind_of(str(path), shapes)
    prediction = prediction_type or prediction_of(str(path), kind, shapes, metadata)
    folder = CONFIGURATIONS / kind.folder if config is None else config
    tokenizers = {
        name: _tokenizer(folder, name, pad)
        for name, pad in zip(("tokenizer", "tokenizer_2"), kind.pads, strict=False)
    }
    try:
        pipe = getattr(diffusers, kind.pipeline).from_single_file(
            str(path),
            config=str(folder),
            torch_dtype=dtype,
            local_files_only=True,
            **tokenizers,
        )
    except (RuntimeError, ValueError, KeyError, OSError, TypeError) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is incomplete, or of other sizes than {str(folder)!r}: "
            f"{error}"
        ) from None
    _check_whole(path, pipe)
    changes: dict[str, Any] = {"prediction_type": prediction}
    if "ztsnr" in shapes:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler.register_to_config(**changes)
    if kind is SD2 and config is None and prediction == "v_prediction":
        pipe.unet.register_to_config(sample_size=V_SIZE)
    return pipe


def kind_of(name: str, shapes: Mapping[str, list[int]]) -> Kind:
    """Returns the kind of a checkpoint by the names and shapes of its weights.

    Raises:
        ValueError: If it is of none; says what it seems to be.
    """
    if any(key.startswith("lora_") or ".lora_" in key for key in shapes):
        raise ValueError(
            f"checkpoint {name!r} is an adapter (LoRA): load_lora_weights adds it to a pipeline, "
            "which model= takes"
        )
    for kind in (XL, SD2, SD1):
        if all(any(key.startswith(mark) for key in shapes) for mark in kind.marks):
            break
    else:
        raise ValueError(f"checkpoint {name!r} has no text encoder of {KINDS}; {WRAP}")
    missing = [part for part in (f"{UNET}input_blocks.0.0.weight", DECODER) if part not in shapes]
    if missing:
        raise ValueError(f"checkpoint {name!r} is incomplete: it has no {', '.join(missing)}")
    inputs = shapes[f"{UNET}input_blocks.0.0.weight"][1]
    outputs = shapes.get(f"{UNET}out.2.weight", [inputs])[0]
    if inputs != outputs:
        raise ValueError(
            f"checkpoint {name!r} has a unet from {inputs} to {outputs} channels, "
            f"accepted are as many out as in (no inpainting or upscaling); {WRAP}"
        )
    return kind


def prediction_of(
    name: str, kind: Kind, shapes: Mapping[str, list[int]], metadata: Mapping[str, str]
) -> str:
    """Returns what a checkpoint predicts, by its metadata or its keys.

    Where neither says so it is the noise, with a warning, but for Stable Diffusion 2, of which
    either is common.

    Raises:
        ValueError: If there is no telling.
    """
    said = metadata.get("modelspec.prediction_type", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    if said.startswith("v") or architecture.endswith("-v") or "v_pred" in shapes:
        return "v_prediction"
    if said.startswith("eps") or architecture.endswith("v2-512"):
        return "epsilon"
    how = "load_model(..., prediction_type=...) and --prediction-type say it"
    if not kind.certain:
        raise ValueError(
            f"checkpoint {name!r} does not say what it predicts: prediction_type must be "
            f"'v_prediction' (Stable Diffusion 2 at 768 pixels) or 'epsilon' (at 512); {how}"
        )
    log.warning(
        "checkpoint %r does not say what it predicts: taken to be the noise ('epsilon'); %s",
        name,
        how,
    )
    return "epsilon"


def _header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Returns the shapes of a file's weights, and its metadata."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        return shapes, file.metadata() or {}


def _tokenizer(folder: Path, name: str, pad: str) -> Any:
    """Returns a folder's tokenizer, or CLIP's own."""
    from transformers import CLIPTokenizer

    if (folder / name).is_dir():
        return CLIPTokenizer.from_pretrained(folder, subfolder=name)
    return clip_tokenizer(pad)


def _check_whole(path: Path, pipe: Any) -> None:
    """Raises if weights are missing that the configuration asks for."""
    for part, module in pipe.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        missing = [name for name, weight in module.named_parameters() if weight.is_meta]
        if missing:
            raise ValueError(
                f"checkpoint {str(path)!r} is incomplete: its {part} lacks {missing[0]!r}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
