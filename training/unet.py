"""Trains the shipped model's UNet and text encoder together, on latents of rendered pictures.

    python -m training.unet --data data --out model

The latents have the size that the data ask for: `--start` with larger pictures fine-tunes a model
for a larger size. Every 500 steps the averaged weights are saved as a diffusers
StableDiffusionPipeline in `<out>/weights`.
"""

import copy
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from training.captions import CaptionedPictures
from training.pictures import load_pictures, to_float
from training.text import TEXT_WIDTH, build_text_encoder, build_tokenizer
from training.trainer import Trainer, parse_options

CHANNELS = (64, 96, 128)
MIN_SNR_GAMMA = 5.0


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(width // 32 for width in CHANNELS),  # Heads of width 32
        use_linear_projection=True,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Returns the noise schedule of Stable Diffusion 2 with v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


@torch.no_grad()
def encode(
    vae: AutoencoderKL, pictures: Tensor, cache: Path, half: bool = False, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the scaled mean and standard deviation of all latents, cached in a file.

    Pictures are averaged down to `size`, if it is given.
    """
    if not cache.exists():
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=half):
            parts = [
                vae.encode(
                    adaptive_avg_pool2d(to_float(chunk.to(vae.device)), (size, size))
                ).latent_dist
                for chunk in tqdm(pictures.split(256), desc="encode")
            ]
        scale = vae.config.scaling_factor
        mean, std = (
            torch.cat([getattr(p, name) for p in parts]) * scale for name in ("mean", "std")
        )
        save_file({"mean": mean.half().contiguous(), "std": std.half().contiguous()}, cache)
    latents = load_file(cache, device=str(vae.device))
    return latents["mean"], latents["std"]


def draw_latents(mean: Tensor, std: Tensor, numbers: Tensor) -> Tensor:
    """Draws latents [B, C, H, W] of some pictures, from what `encode` returned."""
    chosen = mean[numbers].float()
    return chosen + std[numbers].float() * torch.randn_like(chosen)


def save_pipeline(
    out: Path,
    trainer: Trainer,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
) -> None:
    """Writes the averaged weights as a diffusers pipeline in half precision."""
    averaged = {"unet": copy.deepcopy(unet), "text": copy.deepcopy(text_encoder)}
    trainer.copy_average(averaged)
    text_encoder = averaged["text"]
    write_half(out / "weights", averaged["unet"], text_encoder, tokenizer, vae, build_scheduler())


def write_half(
    folder: Path,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    scheduler: SchedulerMixin,
) -> None:
    """Writes copies of the networks as a diffusers pipeline in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.vae, pipeline.unet):
        # Removes a path of this machine from the saved file
        part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(folder)


def loss_of(
    unet: UNet2DConditionModel,
    text: Tensor,  # [B, tokens, width]
    x0: Tensor,  # [B, C, H, W]
    alphas: Tensor,  # [timesteps]
) -> Tensor:
    """Returns the loss of v-prediction, weighted by min-SNR (Hang et al. 2023, arXiv:2303.09556).

    Each image gets a timestep from its own of B equal parts of the schedule, which lowers the
    variance.
    """
    places = torch.arange(len(x0), device=x0.device) + torch.rand(len(x0), device=x0.device)
    t = (places / len(x0) * len(alphas)).long().clamp(max=len(alphas) - 1)
    alpha, sigma = (a.sqrt()[:, None, None, None] for a in (alphas[t], 1 - alphas[t]))
    noise = torch.randn_like(x0)
    noisy = (alpha * x0 + sigma * noise).contiguous(memory_format=torch.channels_last)
    predicted = unet(noisy, t, encoder_hidden_states=text).sample
    snr = alphas[t] / (1 - alphas[t])
    weight = snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1)
    error = (predicted.float() - (alpha * noise - sigma * x0)).square().mean(dim=(1, 2, 3))
    return (weight * error).mean()


def main() -> None:
    args = parse_options(__doc__, steps=22000, batch_size=32, lr=1.5e-3, text=True)

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)
    vae = AutoencoderKL.from_pretrained(args.out / "vae", low_cpu_mem_usage=False)
    vae = vae.float().to(device, memory_format=torch.channels_last)
    half = args.bfloat16 or device.type == "cuda"
    both = []
    for split in ("long_tailed", "even"):
        pictures = load_pictures(args.data / f"{split}.npz")
        both.append(encode(vae, pictures, args.out / f"{split}.safetensors", args.bfloat16))
    mean, std = (torch.cat(parts) for parts in zip(*both, strict=True))
    tokenizer = build_tokenizer()
    if args.start:
        unet = UNet2DConditionModel.from_pretrained(args.start / "unet", low_cpu_mem_usage=False)
        text_encoder = CLIPTextModel.from_pretrained(args.start / "text_encoder")
    else:
        unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    unet.register_to_config(sample_size=mean.shape[-1])
    unet = unet.float().to(device, memory_format=torch.channels_last).train()
    text_encoder = text_encoder.float().to(device).train()
    for name, parameter in unet.named_parameters():
        reads_text = name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        parameter.requires_grad_(reads_text or not args.text_only)
    modules = {"unet": unet, "text": text_encoder}
    trainer = Trainer(modules, args.out / "train_unet", args.steps, args.lr, ema=0.998)
    # A resumed run draws new captions
    captions = CaptionedPictures(args.data, tokenizer, args.batch_size, seed=1000 * trainer.step)
    batches = iter(DataLoader(captions, batch_size=None, num_workers=args.workers))

    alphas = build_scheduler().alphas_cumprod.to(device)

    def draw_loss() -> Tensor:
        numbers, tokens = (part.to(device) for part in next(batches))
        x0 = draw_latents(mean, std, numbers)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return loss_of(unet, text_encoder(tokens)[0], x0, alphas)

    def save() -> None:
        save_pipeline(args.out, trainer, unet, text_encoder, tokenizer, vae)

    trainer.run(draw_loss, save)


if __name__ == "__main__":
    main()
