"""Trains the shipped model's autoencoder: pictures to latents of a quarter of their side and back.

python -m training.autoencoder --data data --out model
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss
from tqdm import tqdm

from training.pictures import load_pictures, to_float
from training.trainer import Trainer, parse_options

KL_WEIGHT = 5e-5
CHANNELS = (24, 48, 96)


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        force_upcast=False,
    )


def loss_of(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    mean, log_variance = vae.quant_conv(vae.encoder(pictures)).chunk(2, dim=1)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance.clamp(-30, 20))
    decoded = vae.decoder(vae.post_quant_conv(latents))
    edges = sum(l1_loss(decoded.diff(dim=dim), pictures.diff(dim=dim)) for dim in (2, 3))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    fidelity = l1_loss(decoded, pictures) + 2 * mse_loss(decoded, pictures)
    return fidelity + 0.5 * edges + KL_WEIGHT * kl


@torch.no_grad()
def evaluate(vae: AutoencoderKL, pictures: Tensor) -> tuple[float, float]:
    """Returns the mean PSNR in dB and the standard deviation of the latents."""
    psnr, latents = [], []
    for chunk in to_float(pictures).split(64):
        mean = vae.encode(chunk).latent_dist.mean
        error = (vae.decode(mean).sample.clamp(-1, 1) - chunk).square().mean(dim=(1, 2, 3))
        psnr.append(10 * torch.log10(4 / error.clamp_min(1e-12)))
        latents.append(mean)
    return torch.cat(psnr).mean().item(), torch.cat(latents).std().item()


def main() -> None:
    args = parse_options(__doc__, steps=2600, batch_size=16, lr=2e-3)

    torch.manual_seed(0)
    device = torch.device(args.device)
    pictures = load_pictures(args.data / "even.npz").to(device)
    heldout = load_pictures(args.data / "heldout.npz").to(device)
    vae = build()
    if args.start:
        vae = AutoencoderKL.from_pretrained(args.start / "vae", low_cpu_mem_usage=False).float()
    vae.register_to_config(sample_size=pictures.shape[-1])
    half = args.bfloat16 or device.type == "cuda"
    vae = vae.train().to(device, memory_format=torch.channels_last)
    trainer = Trainer({"vae": vae}, args.out / "train_vae", args.steps, args.lr)
    if device.type == "cpu":
        # Compiled as one graph, the decoder had zero gradients for the latents (torch 2.13)
        parts = (vae.encoder.down_blocks, vae.decoder.up_blocks)
        middles = (vae.encoder.mid_block, vae.decoder.mid_block)
        for block in (*parts[0], *middles, *parts[1]):
            block.compile()
    progress = tqdm(trainer.remaining(), total=args.steps, initial=trainer.step, mininterval=10)
    for step in progress:
        batch = pictures[torch.randint(len(pictures), (args.batch_size,), device=device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_of(vae, to_float(batch))
        trainer.update(loss)
        if step % 200 == 199:
            psnr, std = evaluate(vae, heldout[::13])
            progress.write(f"step {step + 1}: loss {loss.item():.4f} psnr {psnr:.2f} std {std:.3f}")
    _, std = evaluate(vae, pictures[::50])
    vae.register_to_config(scaling_factor=1 / std)
    vae.save_pretrained(args.out / "vae")
    print(f"held-out PSNR {evaluate(vae, heldout)[0]:.2f} dB")


if __name__ == "__main__":
    main()
