"""Splits the time of a step into model, repulsion and the rest."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import fastrepulse
from bench.common import now
from fastrepulse import Repulsion, models
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.denoiser import Denoiser

PARTS = ("model", "repulsion", "rest")


@contextmanager
def timed(
    owner: type, name: str, seconds: dict[str, float], part: str, device: str
) -> Iterator[None]:
    """Adds the time of a method to `seconds[part]`; for `push`, also that of `change`."""
    original = getattr(owner, name)

    def timing(function):
        def measured(*arguments, **named):
            start = now(device)
            result = function(*arguments, **named)
            seconds[part] += now(device) - start
            return result

        return measured

    def measured(*arguments, **named):
        result = timing(original)(*arguments, **named)
        if name != "push" or result.changes is None:
            return result
        step = timing(lambda: next(result.changes, None))
        return replace(result, changes=iter(step, None))

    setattr(owner, name, measured)
    try:
        yield
    finally:
        setattr(owner, name, original)


def shares(model: models.Model, n: int, steps: int, **how: Any) -> dict[str, float]:
    """Returns the seconds per step of the model, the repulsion and the rest."""
    seconds: dict[str, float] = defaultdict(float)
    # Push and guidance act at every step
    always = Repulsion(window=(float("inf"), 0.0), pause=None)
    how = {"repulsion": always, "num_inference_steps": steps, "progress": False, "seed": 0, **how}
    latents = initial_noise(0, n, model.latent_shape(None, None))
    # Decoding is not part of a step
    decode = models.Model.decode
    models.Model.decode = lambda self, latents: latents[:, :3].clamp(0, 1)
    try:
        with (
            timed(Denoiser, "__call__", seconds, "model", model.device.type),
            timed(Repulsion, "push", seconds, "repulsion", model.device.type),
        ):
            start = now(model.device.type)
            fastrepulse.sample("a potted plant", n, model=model, latents=latents, **how)
            seconds["rest"] = now(model.device.type) - start - sum(seconds.values())
    finally:
        models.Model.decode = decode
    return {part: seconds[part] / steps for part in PARTS}
