"""Distils the shipped model into a student of four steps without guidance.

    python -m training.turbo --out turbo

The guided teacher takes particles from noise to images, two steps of DPM-Solver++ (2M) for each
step of the student. At each of its noise levels the student learns the constant prediction that
takes Euler's method to where the teacher arrives (progressive distillation, Salimans & Ho 2022,
arXiv:2202.00512, with the guidance distilled in, Meng et al. 2023, arXiv:2210.03142).
"""

import argparse
import copy
import itertools
import math
import random
from functools import cache
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.models import Model, load_model
from fastrepulse.schedule import denoised
from training.trainer import Trainer
from training.unet import write_half

STEPS = 4
GUIDANCE_SCALE = 7.5
BARE = 0.6
"""Share of prompts that name no attribute."""
NAMED = 0.4
"""Probability of naming each attribute in the other prompts."""
BATCH = 64
"""Trajectories that the teacher draws at once."""


def draw_prompt(rng: random.Random) -> str:
    """Draws a bare prompt, or one that names some attributes."""
    subject = rng.choice(SUBJECTS)
    if rng.random() < BARE:
        return subject.prompt
    named = {
        attribute.name: rng.choice(attribute.values)
        for attribute in subject.attributes
        if rng.random() < NAMED
    }
    return subject.caption(named)


class Teacher:
    """The shipped model with guidance, at any noise level."""

    def __init__(self, model: Model):
        self.scheduler = EulerDiscreteScheduler.from_config(
            model.scheduler_config, timestep_spacing="trailing"
        )
        self.scheduler.set_timesteps(STEPS)
        self.timesteps = self.scheduler.timesteps
        self.sigmas = self.scheduler.sigmas.tolist()
        self.unet = copy.deepcopy(model.unet).to(torch.bfloat16)
        self.encode = cache(
            torch.no_grad()(lambda prompt: model.encode_prompts([prompt]).tokens.float()[0])
        )
        alphas = self.scheduler.alphas_cumprod.double()
        self._log_sigmas = ((1 - alphas) / alphas).sqrt().log()

    def text(self, prompts: list[str]) -> Tensor:
        """Returns the text embeddings [B, tokens, width] of prompts."""
        return torch.stack([self.encode(prompt) for prompt in prompts])

    def timestep(self, sigma: float) -> float:
        """Returns the timestep of a noise level, interpolated in log sigma."""
        above = int(torch.searchsorted(self._log_sigmas, math.log(sigma)))
        above = min(max(above, 1), len(self._log_sigmas) - 1)
        low, high = self._log_sigmas[above - 1 : above + 1].tolist()
        return above - 1 + min(max((math.log(sigma) - low) / (high - low), 0.0), 1.0)

    def predict(self, z: Tensor, sigma: float, text: Tensor, empty: Tensor) -> Tensor:
        """Returns the guided clean prediction at z = x0 + sigma * noise."""
        scaled = (z / math.sqrt(1 + sigma**2)).to(torch.bfloat16)
        both = torch.cat([empty.expand_as(text), text]).to(torch.bfloat16)
        timestep = torch.tensor(self.timestep(sigma))
        output = self.unet(torch.cat([scaled, scaled]), timestep, both).sample.float()
        plain, guided = denoised(torch.cat([z, z]), output, sigma, "v_prediction").chunk(2)
        return plain + GUIDANCE_SCALE * (guided - plain)

    def levels(self) -> list[float]:
        """Returns the teacher's noise levels: the student's, and one between each two of them."""
        levels = []
        for sigma, below in zip(self.sigmas, self.sigmas[1:], strict=False):
            levels += [sigma, math.sqrt(sigma * below) if below else 0.3 * sigma]
        return [*levels, 0.0]

    @torch.no_grad()
    def trajectories(self, z: Tensor, text: Tensor) -> Tensor:
        """Returns the particles at each of the student's noise levels, [B, STEPS + 1, C, H, W]."""
        levels, empty = self.levels(), self.text([""])
        reached, before = [z], None
        for sigma, below in itertools.pairwise(levels):
            x0 = self.predict(z, sigma, text, empty)
            target = x0
            if before is not None and below > 0:
                last_sigma, last = before
                ratio = math.log(sigma / below) / (2 * math.log(last_sigma / sigma))
                target = x0 + ratio * (x0 - last)
            z = target + below / sigma * (z - target)
            before = sigma, x0
            reached.append(z)
        return torch.stack(reached[::2], dim=1)


def draw_trajectories(teacher: Teacher, folder: Path, count: int) -> tuple[Tensor, list[str]]:
    """Draws trajectories batch by batch; finished batches are kept in files."""
    folder.mkdir(parents=True, exist_ok=True)
    batches, prompts = [], []
    for number in tqdm(range(-(-count // BATCH)), desc="teacher"):
        rng = random.Random(number)
        drawn = [draw_prompt(rng) for _ in range(BATCH)]
        file = folder / f"{number:04d}.safetensors"
        if not file.exists():
            noise = torch.randn(BATCH, 4, 16, 16, generator=torch.Generator().manual_seed(number))
            reached = teacher.trajectories(teacher.sigmas[0] * noise, teacher.text(drawn))
            save_file({"reached": reached.half()}, file)
        batches.append(load_file(file)["reached"])
        prompts += drawn
    return torch.cat(batches), prompts


def loss_of(
    unet: UNet2DConditionModel,
    timesteps: Tensor,  # [STEPS]
    sigmas: Tensor,  # [STEPS + 1]
    reached: Tensor,  # [B, STEPS + 1, C, H, W]
    text: Tensor,  # [B, tokens, width]
) -> Tensor:
    """Returns the squared error of the clean prediction, relative to what noise leaves open."""
    step = torch.randint(STEPS, (len(reached),))
    rows = torch.arange(len(reached))
    z, below = reached[rows, step].float(), reached[rows, step + 1].float()
    sigma, next_sigma = (s.view(-1, 1, 1, 1) for s in (sigmas[step], sigmas[step + 1]))
    ratio = next_sigma / sigma
    target = (below - ratio * z) / (1 - ratio)
    signal = (1 + sigma**2).rsqrt()
    with torch.autocast("cpu", torch.bfloat16):
        output = unet((z * signal).contiguous(), timesteps[step], text).sample
    # The velocity that implies the target, weighted back to the error of the prediction
    velocity = (signal**2 * z - target) / (sigma * signal)
    return ((output.float() - velocity) * sigma * signal).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the weights.")
    parser.add_argument("--trajectories", type=int, default=4800)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-4)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = load_model(dtype=torch.float32, device="cpu")
    teacher = Teacher(model)
    reached, prompts = draw_trajectories(teacher, args.out / "trajectories", args.trajectories)
    student = copy.deepcopy(model.unet).train().to(memory_format=torch.channels_last)
    trainer = Trainer({"unet": student}, args.out / "train", args.steps, args.lr, ema=0.998)
    sigmas = torch.tensor(teacher.sigmas)

    def draw_loss() -> Tensor:
        rows = torch.randint(len(reached), (args.batch_size,))
        text = teacher.text([prompts[row] for row in rows])
        return loss_of(student, teacher.timesteps, sigmas, reached[rows], text)

    def save() -> None:
        averaged = copy.deepcopy(student).eval()
        trainer.copy_average({"unet": averaged})
        kept = (model.text_encoder, model.tokenizer, model.vae, teacher.scheduler)
        write_half(args.out / "weights", averaged, *kept)

    trainer.run(draw_loss, save)


if __name__ == "__main__":
    main()
