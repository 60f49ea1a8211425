"""Trains a rectified-flow transformer of Stable Diffusion 3's classes, text encoders included.

    python -m training.flow --data data --vae large/vae --out flow --size 64
    python -m training.flow --data data --vae large/vae --out flow --start flow/weights --steps 2500

The first command trains on pictures that are averaged to 64x64, where a step costs a quarter. The
second one continues with whole pictures. `StableDiffusion3Pipeline.from_pretrained` loads the
weights with `text_encoder_3=None, tokenizer_3=None`.

Rectified flow: Liu et al. 2022, arXiv:2209.03003. The transformer and the density of timesteps:
Esser et al. 2024, arXiv:2403.03206.
"""

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from training.captions import CaptionedPictures
from training.pictures import load_pictures
from training.text import build_tokenizer, text_config
from training.trainer import Trainer
from training.unet import draw_latents, encode

SIDE = 32
"""Side of the latents of whole pictures."""
WIDTHS = (128, 64)
"""Widths of the two text encoders."""
PADDING = 256
"""Tokens of zeros that the pipeline passes in place of the third text encoder."""
SHIFT = 3.0
"""Shift of the schedule that images are drawn with, as Stable Diffusion 3 has it."""


def build_transformer() -> SD3Transformer2DModel:
    """Returns a transformer with 192 channels and five blocks; blocks start as the identity."""
    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=sum(WIDTHS),
        caption_projection_dim=192,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=SIDE // 2,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def build_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    """Returns a text encoder with two layers; the pipeline reads the output of the first one."""
    return CLIPTextModelWithProjection(text_config(tokenizer, width))


class PaddedOnce:
    """Joint attention whose last key counts PADDING times.

    Equal tokens without positions stay equal in every block. So one token of zeros stands for all
    tokens of the padding, at 1 / PADDING of their cost.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None
    ) -> tuple[Tensor, Tensor]:
        def heads(
            of_image: Tensor, of_text: Tensor, norm: nn.Module, norm_text: nn.Module
        ) -> Tensor:
            parts = (x.unflatten(2, (attn.heads, -1)) for x in (of_image, of_text))
            image, text = (x.transpose(1, 2) for x in parts)
            return torch.cat([norm(image), norm_text(text)], dim=2)

        image, text, plain = hidden_states, encoder_hidden_states, nn.Identity()
        q = heads(attn.to_q(image), attn.add_q_proj(text), attn.norm_q, attn.norm_added_q)
        k = heads(attn.to_k(image), attn.add_k_proj(text), attn.norm_k, attn.norm_added_k)
        v = heads(attn.to_v(image), attn.add_v_proj(text), plain, plain)
        scores = q @ k.to(q).mT / math.sqrt(q.shape[-1])
        count = torch.ones(k.shape[2], dtype=scores.dtype)
        count[-1] = PADDING
        # The fused attention's backward pass takes half of a step's time on a CPU
        mixed = torch.softmax(scores + count.log(), dim=-1) @ v.to(q)
        mixed = mixed.transpose(1, 2).flatten(2)
        image, text = mixed.split([image.shape[1], text.shape[1]], dim=1)
        text = text if attn.context_pre_only else attn.to_add_out(text)
        return attn.to_out[0](image), text


def encode_captions(
    encoders: list[CLIPTextModelWithProjection],
    tokens: Tensor,  # [B, tokens]
) -> tuple[Tensor, Tensor]:
    """Returns the context [B, tokens + 1, width], padded once, and the pooled text [B, width]."""
    encoded = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    context = torch.cat([each.hidden_states[-2] for each in encoded], dim=2)
    pooled = torch.cat([each.text_embeds for each in encoded], dim=1)
    return F.pad(context, (0, 0, 0, 1)), pooled


def loss_of(
    transformer: SD3Transformer2DModel,
    context: Tensor,  # [B, tokens, width]
    pooled: Tensor,  # [B, width]
    x0: Tensor,  # [B, C, H, W]
) -> Tensor:
    """Returns the mean squared error of the velocity, noise - x0.

    Times are logit-normal, around a noise level that grows with the side of the latents. Each image
    gets a time from its own of B equal parts, which lowers the variance.
    """
    places = (torch.arange(len(x0)) + torch.rand(len(x0))) / len(x0)
    normal = math.sqrt(2) * torch.erfinv(2 * places.clamp(1e-4, 1 - 1e-4) - 1)
    t = torch.sigmoid(normal + math.log(x0.shape[-1] / 16) + 0.5)
    noise, level = torch.randn_like(x0), t[:, None, None, None]
    predicted = transformer(
        hidden_states=(1 - level) * x0 + level * noise,
        timestep=1000 * t,
        encoder_hidden_states=context,
        pooled_projections=pooled,
    ).sample
    return F.mse_loss(predicted.float(), noise - x0)


def save_pipeline(
    out: Path,
    trainer: Trainer,
    transformer: SD3Transformer2DModel,
    encoders: list[CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
) -> None:
    """Writes the averaged weights as a diffusers pipeline in half precision."""
    modules = {"transformer": transformer, "text_1": encoders[0], "text_2": encoders[1]}
    averaged = {name: copy.deepcopy(module) for name, module in modules.items()}
    trainer.copy_average(averaged)
    pipeline = StableDiffusion3Pipeline(
        transformer=averaged["transformer"].half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=copy.deepcopy(vae).half(),
        text_encoder=averaged["text_1"].half(),
        tokenizer=tokenizer,
        text_encoder_2=averaged["text_2"].half(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    for part in (pipeline.vae, pipeline.transformer):
        # Removes a path of this machine from the saved file
        part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(out / "weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Output folder of render.py.")
    parser.add_argument("--vae", type=Path, required=True, help="Folder of the autoencoder.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the weights.")
    parser.add_argument("--size", type=int, default=128, help="Side of the pictures.")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--start", type=Path, help="Pipeline folder with initial weights.")
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae, low_cpu_mem_usage=False).float()
    vae.register_to_config(shift_factor=0.0)
    parts = []
    for split in ("long_tailed", "even"):
        cache = args.out / f"{split}-{args.size}.safetensors"
        pictures = torch.empty(0)
        if not cache.exists():
            pictures = load_pictures(args.data / f"{split}.npz")
        parts.append(encode(vae, pictures, cache, half=True, size=args.size))
    mean, std = (torch.cat(both) for both in zip(*parts, strict=True))
    tokenizer = build_tokenizer()
    if args.start:
        transformer = SD3Transformer2DModel.from_pretrained(args.start / "transformer")
        encoders = [
            CLIPTextModelWithProjection.from_pretrained(args.start / name)
            for name in ("text_encoder", "text_encoder_2")
        ]
    else:
        transformer = build_transformer()
        encoders = [build_text_encoder(tokenizer, width) for width in WIDTHS]
    transformer.float().train().set_attn_processor(PaddedOnce())
    encoders = [encoder.float().train() for encoder in encoders]
    modules = {"transformer": transformer, "text_1": encoders[0], "text_2": encoders[1]}
    folder = args.out / f"train-{args.size}"
    trainer = Trainer(modules, folder, args.steps, args.lr, ema=0.998)
    # A resumed run draws new captions
    captions = CaptionedPictures(args.data, tokenizer, args.batch_size, seed=1000 * trainer.step)
    batches = iter(DataLoader(captions, batch_size=None))

    def draw_loss() -> Tensor:
        numbers, tokens = next(batches)
        x0 = draw_latents(mean, std, numbers)
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(transformer, *encode_captions(encoders, tokens), x0)

    def save() -> None:
        save_pipeline(args.out, trainer, transformer, encoders, tokenizer, vae)

    trainer.run(draw_loss, save)


if __name__ == "__main__":
    main()
