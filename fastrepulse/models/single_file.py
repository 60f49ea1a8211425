"""Single-file checkpoints in the layout of the original code: detects the kind, and loads them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastrepulse.models.folder import SUPPORTED, WRAPPER_HINT
from fastrepulse.models.vocabulary import END, clip_tokenizer

CONFIGURATIONS = Path(__file__).parent / "configurations"
PREDICTIONS = ("epsilon", "v_prediction")
UNET = "model.diffusion_model."
DECODER = "first_stage_model.decoder.conv_in.weight"
V_SIZE = 96
"""Width of latents of Stable Diffusion 2 with v-prediction, trained at 768 pixels."""

log = logging.getLogger("fastrepulse")


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint, with a prefix of weights and a padding token for each text encoder."""

    folder: str
    prefixes: tuple[str, ...]
    pads: tuple[str, ...]
    pipeline: str
    usually_epsilon: bool
    """Whether nearly all such checkpoints predict the noise."""


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
    """Loads a checkpoint as a diffusers pipeline on the CPU; for its arguments see `load_model`."""
    import diffusers
    from safetensors import safe_open
    from transformers import CLIPTokenizer

    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    kind = kind_of(str(path), shapes)
    prediction = prediction_type or prediction_of(str(path), kind, shapes, metadata)
    folder = CONFIGURATIONS / kind.folder if config is None else config
    tokenizers = {
        name: CLIPTokenizer.from_pretrained(folder, subfolder=name)
        if (folder / name).is_dir()
        else clip_tokenizer(pad)
        for name, pad in zip(("tokenizer", "tokenizer_2"), kind.pads, strict=False)
    }
    _check_names(path, shapes, folder)
    try:
        pipe = getattr(diffusers, kind.pipeline).from_single_file(
            str(path), config=str(folder), torch_dtype=dtype, local_files_only=True, **tokenizers
        )
    except (RuntimeError, ValueError, KeyError, OSError, TypeError) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} is incomplete, or its sizes differ from those in "
            f"{str(folder)!r}: {error}"
        ) from None
    _check_complete(path, pipe)
    changes: dict[str, Any] = {"prediction_type": prediction}
    if "ztsnr" in shapes:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler.register_to_config(**changes)
    if kind is SD2 and config is None and prediction == "v_prediction":
        pipe.unet.register_to_config(sample_size=V_SIZE)
    return pipe


def kind_of(name: str, shapes: Mapping[str, list[int]]) -> Kind:
    """Returns the kind of a checkpoint, from the names and shapes of its weights."""
    if any(key.startswith("lora_") or ".lora_" in key for key in shapes):
        raise ValueError(
            f"checkpoint {name!r} is an adapter (LoRA): add it to a pipeline with "
            "load_lora_weights and pass the pipeline as model="
        )
    for kind in (XL, SD2, SD1):
        if all(any(key.startswith(prefix) for key in shapes) for prefix in kind.prefixes):
            break
    else:
        raise ValueError(f"checkpoint {name!r} has no text encoder of {SUPPORTED}; {WRAPPER_HINT}")
    missing = [part for part in (f"{UNET}input_blocks.0.0.weight", DECODER) if part not in shapes]
    if missing:
        raise ValueError(f"checkpoint {name!r} is incomplete: it lacks {', '.join(missing)}")
    inputs = shapes[f"{UNET}input_blocks.0.0.weight"][1]
    outputs = shapes.get(f"{UNET}out.2.weight", [inputs])[0]
    if inputs != outputs:
        raise ValueError(
            f"checkpoint {name!r} has a unet from {inputs} to {outputs} channels, "
            f"accepted are as many out as in (no inpainting or upscaling); {WRAPPER_HINT}"
        )
    return kind


def prediction_of(
    name: str, kind: Kind, shapes: Mapping[str, list[int]], metadata: Mapping[str, str]
) -> str:
    """Returns the prediction type of a checkpoint, from its metadata or the names of its weights.

    If neither states it, Stable Diffusion 1 and XL are taken to predict the noise, with a warning.
    Stable Diffusion 2 is refused then, because both types are common.
    """
    stated = metadata.get("modelspec.prediction_type", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    if stated.startswith("v") or architecture.endswith("-v") or "v_pred" in shapes:
        return "v_prediction"
    if stated.startswith("eps") or architecture.endswith("v2-512"):
        return "epsilon"
    how = "set load_model(..., prediction_type=...) or --prediction-type"
    if not kind.usually_epsilon:
        raise ValueError(
            f"checkpoint {name!r} does not state its prediction type: prediction_type must be "
            f"'v_prediction' (Stable Diffusion 2 at 768 pixels) or 'epsilon' (at 512); {how}"
        )
    log.warning(
        "checkpoint %r does not state its prediction type, 'epsilon' is assumed; otherwise %s",
        name,
        how,
    )
    return "epsilon"


def _check_names(path: Path, shapes: Mapping[str, list[int]], folder: Path) -> None:
    """Raises ValueError if the UNet or the autoencoder lacks a weight, or the UNet has another."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as convert

    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for part, network, converted in (
        ("unet", UNet2DConditionModel, convert.convert_ldm_unet_checkpoint),
        ("vae", AutoencoderKL, convert.convert_ldm_vae_checkpoint),
    ):
        config = network.load_config(folder, subfolder=part)
        with torch.device("meta"):
            expected = network.from_config(config).state_dict()
        try:
            found = converted(dict(given), config=config)
            missing = sorted(expected.keys() - found.keys())
        except KeyError as error:
            missing = [str(error.args[0])]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"checkpoint {str(path)!r} is incomplete: its {part} lacks {missing[0]!r}{more}"
            )
        used = {id(tensor) for name, tensor in found.items() if name in expected}
        left = [name for name in given if name.startswith(UNET) and id(given[name]) not in used]
        if part == "unet" and left:
            raise ValueError(
                f"checkpoint {str(path)!r} has a tensor that the configuration in "
                f"{str(folder)!r} does not have: {left[0]!r}"
            )


def _check_complete(path: Path, pipe: Any) -> None:
    """Raises ValueError if a weight in the configuration is missing from the checkpoint."""
    for part, module in pipe.components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        missing = [name for name, weight in module.named_parameters() if weight.is_meta]
        if missing:
            raise ValueError(
                f"checkpoint {str(path)!r} is incomplete: its {part} lacks {missing[0]!r}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
