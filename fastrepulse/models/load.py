"""`load_model`: reads the weights, chooses device and dtype, and shares loaded models."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastrepulse.checks import check_choice, check_path
from fastrepulse.default_model.captions import vocabulary
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.models.folder import (
    check_folder,
    check_loading,
    choose_variants,
    read_json,
    zeros_for_empty,
)
from fastrepulse.models.hub import download
from fastrepulse.models.locate import locate_model
from fastrepulse.models.model import Model
from fastrepulse.models.pipeline import is_pipeline, model_of_pipeline
from fastrepulse.models.shipped import shipped_name
from fastrepulse.models.single_file import PREDICTIONS, read_file
from fastrepulse.torch_settings import undisturbed

_loaded: "weakref.WeakValueDictionary[tuple, Model]" = weakref.WeakValueDictionary()
_shipped: list[Model] = []
"""Keeps the shipped model in memory, once for each dtype in use: it is small."""
_loading = threading.Lock()


@undisturbed()
def load_model(
    model: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    prediction_type: str | None = None,
    config: str | Path | None = None,
) -> Model:
    """Loads a Stable Diffusion 1, 2 or XL model.

    A model that is still in use is returned again, not loaded twice. The shipped model stays in
    memory.

    Args:
        model: None for the shipped model, "turbo" for the shipped model of four steps, a local
            folder in diffusers' layout, a single-file checkpoint, a hub id "owner/name", or a
            loaded StableDiffusionPipeline, whose parts are used unchanged. Weights are read from
            safetensors only, never unpickled. If a folder has several variants (fp16, bf16,
            non_ema, sharded or not), the best for `dtype` is loaded.
        device: Where the model runs; by default a CUDA GPU if there is one, else the CPU.
        dtype: By default float16 on a GPU and float32 on the CPU.
        prediction_type: What the model predicts, "epsilon" or "v_prediction"; by default what its
            configuration says.
        config: For a single-file checkpoint: a folder in diffusers' layout with its configurations
            and tokenizers. By default they are the original models' configurations and CLIP's
            vocabulary, which `pip install --no-deps open_clip_torch` installs.

    Raises:
        ValueError: If the model is not supported, its weights are pickled or damaged, a checkpoint
            does not state its prediction type, or the device does not exist.
        TypeError: If `model` has another type, or `dtype` is not a `torch.dtype`.
        FileNotFoundError: If the path does not exist and is no hub id.
        OSError: If the download from the hub fails.
        ImportError: If a checkpoint needs CLIP's vocabulary and it is not installed.
    """
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise TypeError(f"dtype must be a torch.dtype or None, got {dtype!r}")
    if prediction_type is not None:
        check_choice("prediction_type, if given,", prediction_type, PREDICTIONS)
    if is_pipeline(model):
        model = model_of_pipeline(model)
    if isinstance(model, Model):
        wanted = None if device is None else _check_device(device)
        if wanted not in (None, model.device):
            raise ValueError(f"device of the model given is {model.device}, got device={device}")
        if dtype not in (None, model.dtype):
            raise ValueError(f"dtype of the model given is {model.dtype}, got dtype={dtype}")
        for argument, given in (("prediction_type", prediction_type), ("config", config)):
            if given is not None:
                raise ValueError(
                    f"{argument} must be None for a model that is loaded already, got {given!r}"
                )
        return model
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = _check_device(device)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    name = locate_model(model)
    folder = _config_folder(config, Path(name))
    key = (name, device, dtype, prediction_type, folder)
    with _loading:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = _load(name, device, dtype, prediction_type, folder)
            if found.vocabulary is not None:
                _shipped.append(found)
    return found


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


def _config_folder(config: str | Path | None, path: Path) -> Path | None:
    """Checks the folder with a checkpoint's configurations, and returns its absolute path."""
    if config is None:
        return None
    check_path("config", config)
    folder = Path(config).expanduser()
    if not path.is_file():
        raise ValueError(f"config must be None unless model is a single file, got {str(config)!r}")
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"config must be a folder with a model_index.json, got {str(config)!r}"
        )
    return folder.resolve()


def _load(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    prediction_type: str | None,
    config: Path | None,
) -> Model:
    """Reads a model and moves it to its device."""
    path = Path(name)
    try:
        if path.is_file():
            pipe = read_file(path, dtype, prediction_type, config)
            model = replace(model_of_pipeline(pipe), name=name)
        else:
            if not path.is_dir():
                path = download(name, dtype)
                check_folder(path)
            model = _read_folder(path, name, dtype)
    except SafetensorError as error:
        raise ValueError(f"model {name!r} has damaged weights: {error}") from None
    if prediction_type is not None:
        model.scheduler_config["prediction_type"] = prediction_type
    for network in (model.unet, model.vae):
        # Channels last makes convolutions faster on the CPU and on a GPU's tensor cores
        network.to(device, memory_format=torch.channels_last).eval()
    for encoder in (model.text_encoder, model.text_encoder_2):
        if encoder is not None:
            encoder.to(device).eval()
    return model


def _read_folder(path: Path, name: str, dtype: torch.dtype) -> Model:
    """Reads the model in a checked folder, on the CPU."""
    import diffusers
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    variants = choose_variants(path, dtype)

    def read(kind: Any, part: str, **how: Any) -> Any:
        network, loading = kind.from_pretrained(
            path,
            subfolder=part,
            use_safetensors=True,
            variant=variants[part] or None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **how,
        )
        check_loading(name, part, loading)
        # diffusers leaves a single tensor in another dtype as it is
        return torch.nn.Module.to(network, dtype)

    index = read_json(path / "model_index.json")
    how = {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    parts = {
        "unet": read(UNet2DConditionModel, "unet", **how),
        "vae": read(getattr(diffusers, index["vae"][1]), "vae", **how),
        "tokenizer": CLIPTokenizer.from_pretrained(path, subfolder="tokenizer"),
    }
    with _without_progress_bars():
        parts["text_encoder"] = read(CLIPTextModel, "text_encoder", dtype=dtype)
        if "text_encoder_2" in variants:
            second = read(CLIPTextModelWithProjection, "text_encoder_2", dtype=dtype)
            parts["text_encoder_2"] = second
            parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer_2")
    return Model(
        name=name,
        **parts,
        scheduler_config=dict(DDIMScheduler.load_config(path, subfolder="scheduler")),
        zeros_for_empty=zeros_for_empty(index),
        variants={part: variant for part, variant in variants.items() if variant},
        vocabulary=vocabulary(SUBJECTS) if shipped_name(path) else None,
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hides the progress bars of transformers."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
