"""Prints what the default's rule gives for well-known models, as the table of docs/settings.md.

    python -m bench.diversity.levels

Only the schedules are used, as the models' published scheduler configurations have them.
"""

import math
from dataclasses import dataclass

from diffusers import EulerDiscreteScheduler

from fastrepulse.checks import Window
from fastrepulse.methods.defaults import RunFacts, levels_for


def stable_diffusion(steps: int) -> list[float]:
    """Returns the noise levels of Euler's method on Stable Diffusion 1 and 2 and on XL."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading" if steps > 8 else "trailing",
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    return scheduler.sigmas[:-1].tolist()


def flow(steps: int, shift: float) -> list[float]:
    """Returns the noise levels shift t / (1 - t) of a flow model at t = 1, ..., 1 / steps."""
    times = [1 - i / steps for i in range(steps)]
    return [shift * t / (1 - t) if t < 1 else math.inf for t in times]


@dataclass(frozen=True)
class Model:
    """A model at its usual size.

    Args:
        name: Its name in the table.
        side: Side of the latents.
        sigmas: Noise level of each step.
        guided: Whether it has a guidance scale above 1.
    """

    name: str
    side: int
    sigmas: list[float]
    guided: bool = True


MODELS = [
    Model("the shipped model", 16, stable_diffusion(25)),
    Model("turbo, 4 steps", 16, stable_diffusion(4), guided=False),
    Model("Stable Diffusion 1.5", 64, stable_diffusion(25)),
    Model("Stable Diffusion 2.1", 96, stable_diffusion(25)),
    Model("Stable Diffusion XL", 128, stable_diffusion(30)),
    Model("SDXL-Lightning, 4 steps", 128, stable_diffusion(4), guided=False),
    Model("Stable Diffusion 3.5", 128, flow(28, 3)),
    Model("Stable Diffusion 3.5 Turbo, 4 steps", 128, flow(4, 3), guided=False),
    Model("FLUX.1-dev", 128, flow(20, math.exp(1.15)), guided=False),
    Model("FLUX.1-schnell, 4 steps", 128, flow(4, 1), guided=False),
    Model("Qwen-Image", 166, flow(50, math.exp(0.834))),
    Model("Qwen-Image-Lightning, 4 steps", 166, flow(4, 3), guided=False),
    Model("Z-Image-Turbo, 8 steps", 128, flow(8, 3), guided=False),
]


def level(sigma: float) -> str:
    return "∞" if math.isinf(sigma) else f"{sigma:.3g}"


def bounds(window: Window | None) -> str:
    return "none" if window is None else f"{level(window.high)} to {level(window.low)}"


def row(model: Model) -> str:
    levels = levels_for(RunFacts(model.side, model.side, tuple(model.sigmas), model.guided))
    following = [*model.sigmas[1:], 0.0]
    pushed = [
        sigma
        for i, sigma in enumerate(model.sigmas)
        if sigma in levels.window and not (i == 0 and levels.skips_first_step(following[0]))
    ]
    first = ", ".join(map(level, model.sigmas[:6])) + (", …" if len(model.sigmas) > 6 else "")
    pause = bounds(levels.pause) if model.guided else "no guidance"
    cells = [
        model.name,
        f"{model.side}x{model.side}",
        str(len(model.sigmas)),
        first,
        ", ".join(map(level, pushed)) or "none",
        pause,
        bounds(levels.restart),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    print("| model | latents | steps | noise levels | pushed at | pause | restart |")
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        print(row(model))


if __name__ == "__main__":
    main()
