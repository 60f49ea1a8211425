"""An exact denoiser of rendered pictures: how settings carry over to larger latents.

    python -m bench.diversity.exact_denoiser --sides 16 32 64

The denoiser is the posterior mean of a mixture over the 1,600 rendered pictures, which stand for
latents. Their weights are long-tailed, as in the training of the shipped model, and guidance leads
from the mixture of all subjects to the mixture of one. No network is involved, so every image ends
on a picture. It shows which pictures are reached, and it cannot show artefacts.
"""

import argparse
import math
from collections.abc import Callable
from functools import cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fastrepulse import embeddings, naive
from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.judge import attribute_coverage, attribute_vendi, judge
from fastrepulse.default_model.rendered import PER_SUBJECT, rendered_pictures
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.methods.defaults import WINDOW, RunFacts, levels_for

BARE, UNCONDITIONAL = 2.2, 1.4
"""Exponents of the values' frequencies, for a bare prompt and for the empty prompt."""
STRENGTH = 0.4


@cache
def attributes() -> list[dict[str, str]]:
    """Returns what the judge reads in each rendered picture."""
    images = [Image.fromarray(p) for p in rendered_pictures().flatten(0, 1).movedim(1, 3).numpy()]
    return [shown for _, shown in judge(images)]


def log_weights(exponent: float) -> Tensor:
    """Returns log p of each picture [S, M] within its subject, p ~ 1 / rank^exponent per value."""

    def weight(subject: Subject, shown: dict[str, str]) -> float:
        ranks = [a.ranked.index(shown[a.name]) + 1 for a in subject.attributes if a.name in shown]
        return -exponent * sum(map(math.log, ranks))

    subjects = (subject for subject in SUBJECTS for _ in range(PER_SUBJECT))
    rows = [weight(s, shown) for s, shown in zip(subjects, attributes(), strict=True)]
    return torch.tensor(rows).view(len(SUBJECTS), -1).log_softmax(dim=1)


@cache
def latents(side: int) -> Tensor:
    """Returns the pictures [S * M, 3, side, side] with zero mean and unit variance each."""
    pictures = rendered_pictures().flatten(0, 1) / 127.5 - 1
    sized = interpolate(pictures, size=(side, side), mode="area")
    dims = (1, 2, 3)
    return (sized - sized.mean(dims, keepdim=True)) / sized.std(dims, keepdim=True)


def denoiser(subject: int, side: int, scale: float) -> Callable[[Tensor, float, bool], Tensor]:
    """Returns the guided posterior mean for a subject."""
    x = latents(side).flatten(1)
    own = slice(subject * PER_SUBJECT, (subject + 1) * PER_SUBJECT)
    conditional = log_weights(BARE)[subject].double()
    unconditional = log_weights(UNCONDITIONAL).flatten().double()

    def denoise(z: Tensor, sigma: float, guided: bool) -> Tensor:
        log_likelihood = -torch.cdist(z.flatten(1).double(), x.double()).square() / (2 * sigma**2)
        mean = (conditional + log_likelihood[:, own]).softmax(dim=1).float() @ x[own]
        if guided:
            without = (unconditional + log_likelihood).softmax(dim=1).float() @ x
            mean = without + scale * (mean - without)
        return mean.view_as(z)

    return denoise


def sigmas_of(steps: int) -> list[float]:
    """Returns Stable Diffusion's noise levels, from 14.6 to 0."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square()).cumprod(0)
    timesteps = torch.linspace(999, 0, steps).round().long()
    return [*((1 - alphas) / alphas).sqrt()[timesteps].tolist(), 0.0]


def forms(side: int, sigmas: list[float]) -> dict[str, dict]:
    """Returns the compared settings of `naive.sample` by name."""
    run = RunFacts(side, side, tuple(sigmas[:-1]), True)
    here = {"strength": STRENGTH * 16 / side}
    alone = {"pause": None, "restart": None}
    absolute = levels_for(RunFacts(16, 16, None, True))._asdict()
    return {
        "independent": {"strength": 0.0, "window": (math.inf, 1e6)},
        "levels and strength of 16x16": {"strength": STRENGTH, **absolute},
        "default (scaled)": {**here, **levels_for(run)._asdict()},
        "default without pause": {**here, **levels_for(run)._asdict(), **alone},
        "pause alone": {"strength": 1e-9, **levels_for(run)._asdict()},
        f"push from the first step to {WINDOW.low:g}": {
            **here,
            **alone,
            "window": (math.inf, WINDOW.low),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--num-particles", type=int, default=16)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    sigmas, n = sigmas_of(args.steps), args.num_particles
    print("| side | setting | different | values that appear |\n|" + "---|" * 4)
    for side in args.sides:
        for name, settings in forms(side, sigmas).items():
            different, coverage = [], []
            for seed in range(args.seeds):
                for number, subject in enumerate(SUBJECTS):
                    generator = torch.Generator().manual_seed(1000 * seed + number)
                    noise, fresh = torch.randn(2, n, 3, side, side, generator=generator)
                    found = naive.sample(
                        denoiser(number, side, args.guidance_scale),
                        sigmas[0] * noise,
                        sigmas,
                        embeddings.build("thirds"),
                        fresh,
                        **settings,
                    )
                    nearest = torch.cdist(found.flatten(1), latents(side).flatten(1)).argmin(dim=1)
                    own = [i for i in nearest.tolist() if i // PER_SUBJECT == number]
                    shown = [attributes()[i] for i in own]
                    different.append(attribute_vendi(shown))
                    coverage.append(attribute_coverage(shown, subject, n))
            figures = (sum(each) / len(each) for each in (different, coverage))
            print("| {} | {} | {:.2f} | {:.0%} |".format(side, name, *figures), flush=True)


if __name__ == "__main__":
    main()
