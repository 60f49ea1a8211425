"""Where models come from: the shipped one, a local diffusers folder, or a hub id."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

DEFAULT_MODEL = Path(__file__).parent / "default_model" / "weights"
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}


@dataclass(frozen=True)
class Model:
    """A Stable Diffusion 1 or 2 type model, ready to run.

    Args:
        name: Where it came from.
        unet: `UNet2DConditionModel`.
        vae: `AutoencoderKL`.
        text_encoder: `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        scheduler_config: The configuration of the scheduler it was trained with.
    """

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Returns [C, H, W] of the latents of a picture, by default of the model's own size.

        Raises:
            ValueError: If a side is not a positive multiple of `vae_scale_factor`.
            TypeError: If a side is not an int.
        """
        factor, native = self.vae_scale_factor, self.unet.config.sample_size
        sides = []
        for name, pixels in (("height", height), ("width", width)):
            pixels = native * factor if pixels is None else pixels
            if isinstance(pixels, bool) or not isinstance(pixels, int):
                raise TypeError(f"{name} must be an int or None, got {pixels!r}")
            if pixels <= 0 or pixels % factor:
                raise ValueError(f"{name} must be a positive multiple of {factor}, got {pixels}")
            sides.append(pixels // factor)
        return self.unet.config.in_channels, sides[0], sides[1]

    def scheduler(self, name: str, num_inference_steps: int) -> Any:
        """Returns a fresh diffusers scheduler with its timesteps set.

        Raises:
            ValueError: If there are as many steps as the model was trained with, or more.
        """
        import diffusers

        longest = self.scheduler_config.get("num_train_timesteps", 1000)
        if num_inference_steps >= longest:
            raise ValueError(
                f"num_inference_steps must be below {longest}, got {num_inference_steps}"
            )
        # As diffusers' pipeline sets them, whatever an old folder says
        config = {**self.scheduler_config, "steps_offset": 1, "clip_sample": False}
        scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        return scheduler

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Returns text embeddings [len(prompts), tokens, width]."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def encode(self, pictures: Tensor) -> Tensor:
        """Returns the latents [N, C, H / 8, W / 8] of pictures [N, 3, H, W] in [0, 1]."""
        distribution = self.vae.encode(pictures * 2 - 1).latent_dist
        return distribution.mode() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Returns pictures [N, 3, 8 H, 8 W] (by the model's own factor) in [0, 1]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pictures = self.vae.decode(scaled).sample
        return (pictures / 2 + 0.5).clamp(0, 1)


def load_model(
    model: str | Path | Model | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Loads a Stable Diffusion 1 or 2 type model; the same arguments load it only once.

    Args:
        model: None for the shipped model, a local folder in diffusers' layout, or a hub id
            "owner/name". Weights are read from safetensors alone, never unpickled.
        device: Where it runs; by default a CUDA GPU if there is one, else the CPU.
        dtype: By default float16 on a GPU and float32 on the CPU.

    Raises:
        ValueError: If it is not such a model, or its weights are pickled or damaged; if there is no
            such device.
        TypeError: If `dtype` is not a `torch.dtype`.
        FileNotFoundError: If there is no such folder and the name is no hub id.
    """
    if not (dtype is None or isinstance(dtype, torch.dtype)):
        raise TypeError(f"dtype must be a torch.dtype or None, got {dtype!r}")
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
    try:
        return _load(name, device, dtype)
    except SafetensorError as error:
        raise ValueError(f"model {name!r} has damaged weights: {error}") from None


def locate_model(model: str | Path | None) -> str:
    """Returns the checked path of a local model, or the hub id."""
    if model is None:
        model = DEFAULT_MODEL
    path = Path(model).expanduser()
    if path.is_dir():
        _check_folder(path)
        return str(path.resolve())
    if isinstance(model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        return model
    raise FileNotFoundError(
        f"model must be a folder in diffusers' layout or a hub id 'owner/name', got {str(model)!r}"
    )


def _check_folder(path: Path) -> None:
    try:
        index = json.loads((path / "model_index.json").read_text("utf-8"))
        parts = {part: index[part][1] for part in COMPONENTS}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"model folder {str(path)!r} needs a readable model_index.json that names "
            f"{', '.join(COMPONENTS)}: {type(error).__name__}: {error}"
        ) from None
    for part, accepted in COMPONENTS.items():
        if parts[part] != accepted:
            raise ValueError(
                f"model folder {str(path)!r} has a {part} of class {parts[part]!r}, "
                f"accepted is {accepted!r} (Stable Diffusion 1 and 2)"
            )
        weights = [file.name for file in (path / part).glob("*.safetensors")]
        if all(".fp16." in name for name in weights):
            raise ValueError(
                f"model folder {str(path)!r} has no safetensors weights in {part!r}; "
                "pickled weights are never loaded"
            )
    files = [f"{part}/config.json" for part in COMPONENTS] + ["scheduler/scheduler_config.json"]
    try:
        configs = {file: json.loads((path / file).read_text("utf-8")) for file in files}
    except (OSError, ValueError) as error:
        raise ValueError(f"model folder {str(path)!r} is incomplete: {error}") from None
    if not any((path / "tokenizer").glob("*.json")):
        raise ValueError(f"model folder {str(path)!r} has no tokenizer")
    _check_unet(str(path), configs["unet/config.json"])


def _check_unet(name: str, config: Mapping[str, Any]) -> None:
    """Raises unless a UNet is told nothing but noisy latents, a timestep and a text."""
    channels = config.get("in_channels"), config.get("out_channels")
    if channels[0] != channels[1]:
        raise ValueError(
            f"model {name!r} has a unet from {channels[0]} to {channels[1]} channels, "
            "accepted are as many out as in (no inpainting or upscaling)"
        )
    for more in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(more) is not None:
            raise ValueError(
                f"model {name!r} has a unet with {more} {config[more]!r}, "
                "accepted is none (Stable Diffusion 1 and 2)"
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


@lru_cache(maxsize=2)
def _load(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    safe = {"use_safetensors": True, "torch_dtype": dtype}
    weights = {**safe, "low_cpu_mem_usage": False}
    unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **weights)
    _check_unet(name, unet.config)
    vae = AutoencoderKL.from_pretrained(name, subfolder="vae", **weights)
    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    text_encoder = CLIPTextModel.from_pretrained(
        name, subfolder="text_encoder", use_safetensors=True, dtype=dtype
    )
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
    )
