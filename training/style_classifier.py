"""Trains the style classifier on latents of rendered pictures at all noise levels.

python -m training.style_classifier --data data --out model
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastrepulse.default_model.style_classifier import ASPECTS, WORDS, StyleClassifier
from training.pictures import UNNAMED, describe, load_pictures
from training.trainer import (
    parse_options,
    save_half,
    train_classifier,
)
from training.unet import build_scheduler, encode

SIGMAS = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 14.0)
"""Noise levels of the reported accuracies."""


def load_labels(data: Path, split: str) -> Tensor:
    """Returns the index of each aspect's word, or UNNAMED, [M, aspects]."""
    described = describe(data, split)
    labels = torch.full((len(described), len(ASPECTS)), UNNAMED)
    for i, (_, shown) in enumerate(described):
        for a, (aspect, names) in enumerate(ASPECTS.items()):
            for name in names:
                if name in shown:
                    labels[i, a] = WORDS[aspect].index(shown[name])
    return labels


def draw_sigmas(count: int) -> Tensor:
    """Draws noise levels at random timesteps of the schedule; one in eight is zero."""
    alphas = build_scheduler().alphas_cumprod
    sigmas = ((1 - alphas) / alphas).sqrt()[torch.randint(len(alphas), (count,))]
    return torch.where(torch.rand(count) < 1 / 8, 0.0, sigmas)


def loss_of(classifier: StyleClassifier, noisy: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    heads = zip(classifier(noisy, sigma), labels.T, strict=True)
    named = (
        cross_entropy(logits, target, ignore_index=UNNAMED, reduction="sum")
        for logits, target in heads
    )
    return torch.stack(list(named)).sum() / len(noisy)


@torch.no_grad()
def evaluate(classifier: StyleClassifier, x0: Tensor, labels: Tensor) -> dict[str, dict]:
    """Returns each aspect's accuracy at each of `SIGMAS`, and its share of the commonest word."""
    table = {}
    for a, aspect in enumerate(ASPECTS):
        named = labels[:, a] != UNNAMED
        target = labels[named, a]
        row = {"chance": round(target.bincount().max().item() / len(target), 3)}
        for sigma in SIGMAS:
            noisy = x0[named] + sigma * torch.randn_like(x0[named])
            levels = torch.full((len(noisy),), sigma, device=noisy.device)
            guess = [
                classifier(*part)[a].argmax(dim=1)
                for part in zip(noisy.split(256), levels.split(256), strict=True)
            ]
            right = (torch.cat(guess) == target).float().mean().item()
            row[f"sigma {sigma:g}"] = round(right, 3)
        table[aspect] = row
    return table


def main() -> None:
    args = parse_options(__doc__, steps=12000, batch_size=64)
    torch.manual_seed(0)
    device = torch.device(args.device)
    vae = AutoencoderKL.from_pretrained(args.out / "vae", low_cpu_mem_usage=False).to(device)
    pictures = load_pictures(args.data / "even.npz")
    mean, std = encode(vae, pictures, args.out / "even.safetensors")
    labels = load_labels(args.data, "even").to(device)
    classifier = StyleClassifier().to(device)

    def draw_loss() -> Tensor:
        index = torch.randint(len(mean), (args.batch_size,), device=device)
        sigma = draw_sigmas(args.batch_size).to(device)
        x0 = mean[index].float()
        x0 = x0 + std[index].float() * torch.randn_like(x0)
        noisy = x0 + sigma[:, None, None, None] * torch.randn_like(x0)
        return loss_of(classifier, noisy, sigma, labels[index])

    train_classifier(classifier, args.steps, 4e-3, draw_loss)
    heldout = load_pictures(args.data / "heldout.npz")
    x0 = encode(vae, heldout, args.out / "heldout.safetensors")[0].float()
    accuracy = evaluate(classifier.eval(), x0, load_labels(args.data, "heldout").to(device))
    print(json.dumps(accuracy, indent=2))
    save_half(classifier, args.out / "style_classifier.safetensors")


if __name__ == "__main__":
    main()
