"""Other implementations: diffusers' pipeline, and the repulsion steps of published code."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastrepulse import models
from fastrepulse.embeddings import build
from fastrepulse.kernels import median_bandwidth


def diffusers_pipeline(model: models.Model):
    """Returns diffusers' own pipeline on copies of a model's weights."""
    import copy

    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    parts = {
        name: copy.deepcopy(getattr(model, name)).to(memory_format=torch.contiguous_format)
        for name in ("unet", "vae", "text_encoder")
    }
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=model.tokenizer,
        scheduler=EulerDiscreteScheduler.from_config(model.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def thesis_push(latents: Tensor, name: str) -> Tensor:
    """Returns R_i like the thesis's code: one Jacobian per particle, differences [d, N, N]."""
    embed = build(name)
    jacobians = [
        torch.autograd.functional.jacobian(lambda z: embed(z[None])[0], latent)  # [d, C, H, W]
        for latent in latents
    ]
    embedded = embed(latents).T  # [d, N]
    difference = embedded[:, :, None] - embedded[:, None, :]  # [d, N, N]
    square = difference.square().sum(dim=0)
    h = square[torch.triu_indices(len(latents), len(latents), 1).unbind()].median()
    h = h / math.log(len(latents))
    force = (2 / h * torch.exp(-square / h) * difference).sum(dim=2)  # [d, N]
    pulled = [
        torch.einsum("d,dchw->chw", force[:, i], jacobian) for i, jacobian in enumerate(jacobians)
    ]
    return torch.stack(pulled) / len(latents)


def particle_guidance_push(latents: Tensor, name: str) -> Tensor:
    """Returns R_i like Particle Guidance's code: autograd through differences [N, N, d]."""
    embed = build(name)
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        embedded = embed(leaf)
        h = median_bandwidth(embedded.detach())
        difference = embedded[:, None] - embedded.detach()[None]  # [N, N, d]
        potential = torch.exp(-difference.square().sum(dim=-1) / h).sum() / len(latents)
        (gradient,) = torch.autograd.grad(potential, leaf)
    return -gradient


def run_diffusers(pipeline, prompt: str, latents: Tensor, steps: int) -> list:
    """Returns the images that diffusers' pipeline draws from unit noise."""
    return pipeline(
        prompt,
        num_images_per_prompt=len(latents),
        num_inference_steps=steps,
        guidance_scale=5.0,
        latents=latents,
    ).images


PUSHES: dict[str, Callable[[Tensor, str], Tensor]] = {
    "thesis": thesis_push,
    "Particle Guidance": particle_guidance_push,
}


def stable_diffusion_2(device: str = "cpu", dtype: torch.dtype = torch.float32) -> models.Model:
    """Returns Stable Diffusion 2's architecture (866 M parameters) with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shipped = models.load_model()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
        scaling_factor=0.18215,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(shipped.tokenizer),
            hidden_size=1024,
            intermediate_size=4096,
            projection_dim=1024,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
            bos_token_id=shipped.tokenizer.bos_token_id,
            eos_token_id=shipped.tokenizer.eos_token_id,
            pad_token_id=shipped.tokenizer.pad_token_id,
        )
    )
    where = {"device": device, "dtype": dtype}
    return models.Model(
        "Stable Diffusion 2, random weights",
        unet.to(**where, memory_format=torch.channels_last).eval(),
        vae.to(**where, memory_format=torch.channels_last).eval(),
        text_encoder.to(**where).eval(),
        shipped.tokenizer,
        shipped.scheduler_config,
    )
