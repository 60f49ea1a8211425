"""Loads models: the shipped one, a local diffusers folder, a hub id, or a pipeline's parts."""

import re
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastrepulse.default_model.captions import vocabulary
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.models.folder import check_folder, check_unet, choose_variants
from fastrepulse.models.model import Model
from fastrepulse.models.pipeline import is_pipeline, of_pipeline
from fastrepulse.surroundings import undisturbed

DEFAULT_MODEL = Path(__file__).parents[1] / "default_model" / "weights"
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""How the name of a file with weights ends."""

_loaded: "weakref.WeakValueDictionary[tuple, Model]" = weakref.WeakValueDictionary()
_shipped: list[Model] = []
"""The shipped model in every dtype that was asked for: it is small, and everybody's."""
_loading = threading.Lock()


@undisturbed()
def load_model(
    model: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Loads a Stable Diffusion 1 or 2 type model; while it is in use, the same one only once.

    The shipped model, which is small, stays.

    Args:
        model: None for the shipped model, a local folder in diffusers' layout, a hub id
            "owner/name", or a loaded StableDiffusionPipeline, whose parts are used as they are.
            Weights are read from safetensors alone, never unpickled; of several variants in a
            folder (fp16, bf16, non_ema, sharded or not) the one that suits the dtype is taken.
        device: Where it runs; by default a CUDA GPU if there is one, else the CPU.
        dtype: By default float16 on a GPU and float32 on the CPU.

    Raises:
        ValueError: If it is not such a model, or its weights are pickled or damaged; if there is no
            such device.
        TypeError: If `model` is none of these, or `dtype` is not a `torch.dtype`.
        FileNotFoundError: If there is no such folder and the name is no hub id.
    """
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise TypeError(f"dtype must be a torch.dtype or None, got {dtype!r}")
    if is_pipeline(model):
        model = of_pipeline(model)
    if isinstance(model, Model):
        wanted = None if device is None else _check_device(device)
        if wanted not in (None, model.device):
            raise ValueError(f"device of the model given is {model.device}, got device={device}")
        if dtype not in (None, model.dtype):
            raise ValueError(f"dtype of the model given is {model.dtype}, got dtype={dtype}")
        return model
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = _check_device(device)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    name = locate_model(model)
    key = (name, device, dtype)
    with _loading:
        found = _loaded.get(key)
        if found is None:
            try:
                found = _loaded[key] = _load(name, device, dtype)
            except SafetensorError as error:
                raise ValueError(f"model {name!r} has damaged weights: {error}") from None
            if found.vocabulary is not None:
                _shipped.append(found)
    return found


def locate_model(model: str | Path | None) -> str:
    """Returns the checked path of a local model, or the hub id.

    Raises:
        ValueError: If a folder holds no such model, or a file is given.
        TypeError: If it is neither a path nor a name.
        FileNotFoundError: If there is nothing there, and it cannot be a hub id.
    """
    if model is None:
        model = DEFAULT_MODEL
    if not isinstance(model, (str, Path)):
        raise TypeError(
            "model must be None, a folder, a hub id, a StableDiffusionPipeline or what load_model "
            f"returned, got {model!r}"
        )
    path = Path(model).expanduser()
    if path.is_dir():
        check_folder(path)
        return str(path.resolve())
    if path.suffix in FILES or path.is_file():
        if not path.exists():
            raise FileNotFoundError(f"model must exist, got {str(model)!r}: no such file")
        raise ValueError(
            f"model must be a folder in diffusers' layout, got the file {str(model)!r}; "
            "StableDiffusionPipeline.from_single_file(...) makes a pipeline of it, which model= "
            "takes"
        )
    hub_id = isinstance(model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model)
    if hub_id and not path.parent.is_dir():
        return str(model)
    raise FileNotFoundError(
        f"model must be a folder in diffusers' layout or a hub id 'owner/name', got {str(model)!r}"
        + (f": {str(path.parent)!r} is a folder and has no {path.name!r}" if hub_id else "")
    )


def _check_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be one that torch knows, got {device!r}") from None
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be available, got {str(device)!r} without a CUDA GPU")
    if checked.type == "cuda" and checked.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return checked


def _load(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    path = Path(name)
    variants = choose_variants(path, dtype) if path.is_dir() else {}

    def weights_of(part: str) -> dict[str, Any]:
        variant = variants.get(part) or None
        return {"subfolder": part, "use_safetensors": True, "variant": variant}

    how = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    unet = UNet2DConditionModel.from_pretrained(name, **weights_of("unet"), **how)
    check_unet(name, unet.config)
    vae = AutoencoderKL.from_pretrained(name, **weights_of("vae"), **how)
    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    text_encoder = CLIPTextModel.from_pretrained(name, **weights_of("text_encoder"), dtype=dtype)
    if bar_was_on:
        logging.enable_progress_bar()
    return Model(
        name=name,
        # Channels last: convolutions are faster so, on the CPU and on GPUs' tensor cores
        unet=unet.to(device, memory_format=torch.channels_last).eval(),
        vae=vae.to(device, memory_format=torch.channels_last).eval(),
        text_encoder=text_encoder.to(device).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(name, subfolder="tokenizer"),
        scheduler_config=dict(DDIMScheduler.load_config(name, subfolder="scheduler")),
        variants={part: variant for part, variant in variants.items() if variant},
        vocabulary=vocabulary(SUBJECTS) if path == DEFAULT_MODEL.resolve() else None,
    )
