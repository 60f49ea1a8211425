"""Runs that several processes share. torchrun starts the processes; each writes its results.

python -m torch.distributed.run --nproc-per-node 2 tests/helpers/shared_runs.py OUT [RUN ...]
"""

import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

import fastrepulse
from fastrepulse import Bank, Correction, Repulsion, methods
from fastrepulse.embeddings import KernelSum
from fastrepulse.methods import repulsion
from fastrepulse.methods.base import Particles
from fastrepulse.sampling import decode as decoding
from fastrepulse.sampling.loop import DenoiseLoop

RUNS = {
    "euler": {},
    "ddim": {"scheduler": "ddim", "guidance_scale": 1.0},
    "multistep": {"scheduler": "dpm++", "num_inference_steps": 3},
    "corrector": {"scheduler": "unipc", "num_inference_steps": 3, "guidance_scale": 1.0},
    "many": {
        "prompt": "a planet",
        "num_particles": 33,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
    },
    "corrections": {"corrections": [Correction(step_size=0.1, window=(9.0, 1.0))]},
    "one-prompt": {"prompt": "a planet", "num_particles": 3, "negative_prompt": "blue"},
    "interval": {"repulsion": methods.IntervalGuidance((9.0, 0.5))},
    "text": {"repulsion": methods.CADS()},
    "guidance": {"repulsion": methods.ParticleGuidance(), "guidance_scale": 1.0},
    "vendi": {"repulsion": methods.VendiGuidance(), "guidance_scale": 1.0},
    "subset": {
        "num_particles": 5,
        "repulsion": Repulsion("random_cnn", subset=3),
        "guidance_scale": 1.0,
    },
    "bank": {"repulsion": Repulsion("pooled", bank=Bank()), "guidance_scale": 1.0},
    "slow-process": {},
    "restart": {"num_inference_steps": 5, "repulsion": Repulsion("pooled"), "guidance_scale": 1.0},
}
"""Bit for bit equal to runs of one process."""

ROUNDED = {
    "micro-batches": {"micro_batch_size": 3},
    "rows": {"num_inference_steps": 8, "repulsion": Repulsion("pooled"), "guidance_scale": 1.0},
    "rows-of-kernels": {
        "repulsion": Repulsion(
            KernelSum("thirds", "pooled"), window=(math.inf, 0.0), pause=None, bank=Bank()
        ),
        "guidance_scale": 1.0,
    },
}
"""Equal to runs of one process up to rounding: the order of sums differs."""


@contextmanager
def unlike_others(name, rank):
    """Makes one process slow, or distributes the pairs of few particles over all processes."""
    from pytest import MonkeyPatch

    real = DenoiseLoop._advance

    def advance(self, *given):
        time.sleep(0.7)
        real(self, *given)

    with MonkeyPatch.context() as patch:
        if name == "slow-process" and rank == 1:
            patch.setattr(DenoiseLoop, "_advance", advance)
        if name.startswith("rows"):
            patch.setattr(repulsion, "DISTRIBUTED_FROM", 2)
        yield


def draw(folder, prompt=("a face", "a robot"), num_particles=3, **arguments):
    how = {"num_inference_steps": 2, "seed": 3, "progress": False, "micro_batch_size": 1}
    how |= {"height": 32, "width": 32, "device": "cpu", "compile": False}
    prompt = prompt if isinstance(prompt, str) else list(prompt)
    return fastrepulse.sample(prompt, num_particles, out=folder, **{**how, **arguments})


def on_process(rank, owner, name, error, after=0):
    """Makes a function fail in one process."""
    import torch.distributed as dist
    from pytest import MonkeyPatch

    from helpers.faults import failing

    number = rank if dist.get_rank() == rank else None
    patch = MonkeyPatch()
    return failing(patch, owner, name, error, after if number is not None else 10**9)


def failure(name, folder, group):
    """Returns the error that ends a run on this process."""
    faults = {
        "predict": (1, DenoiseLoop, "predict", ArithmeticError("injected"), 1),
        "first-process": (0, DenoiseLoop, "_advance", MemoryError("injected"), 0),
        "interrupt": (1, DenoiseLoop, "_advance", KeyboardInterrupt(), 0),
        "embed": (1, Particles, "micro_batches", torch.OutOfMemoryError("injected"), 0),
        "picture": (1, decoding, "save_picture", OSError(28, "No space left"), 1),
        "summary": (0, decoding, "save_summary", OSError(28, "No space left"), 0),
    }
    refused = {
        "needs-all-latents": {"repulsion": methods.SVGD()},
        "no-folder": {},
        "too-few": {"num_particles": 1},
        "other-settings": {"guidance_scale": 2.0 + int(os.environ["RANK"])},
    }
    out = None if name == "no-folder" else folder
    try:
        if name in faults:
            with on_process(*faults[name]):
                draw(out, group=group)
        else:
            draw(out, group=group, **refused[name])
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "none"


STEPS = 4
"""Steps of the runs that stop after the first."""


def stop(step):
    raise InterruptedError(f"stopped after {step.taken}")


def stopped(folder):
    """Draws a run in one process that stops after one step and leaves a checkpoint."""
    with suppress(InterruptedError):
        draw(folder, num_inference_steps=STEPS, checkpoint_every=0, callback_on_step_end=stop)


FAILURES = ["predict", "first-process", "interrupt", "embed", "picture", "summary"]
REFUSED = ["needs-all-latents", "no-folder", "too-few", "other-settings"]


def killed(folder, group):
    """Draws a run in which process 1 kills itself after one step."""
    real = DenoiseLoop._advance

    def advance(self, *given):
        if os.environ["RANK"] == "1" and self.done == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *given)

    DenoiseLoop._advance = advance
    draw(folder, group=group, num_inference_steps=STEPS, checkpoint_every=0)


def main():
    import torch.distributed as dist

    out, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group, rank = dist.group.WORLD, dist.get_rank()
    if names == ["killed"]:
        try:
            killed(out / "killed", group)
        except RuntimeError as error:
            (out / f"message-{rank}").write_text(str(error), "utf-8")
        return
    for name, arguments in (RUNS | ROUNDED).items():
        with unlike_others(name, rank):
            result = draw(out / name, group=group, **arguments)
        assert len(result.latents) < len(result.images)
    fastrepulse.resume(out / "stopped", group=group, progress=False)
    errors = {}
    for name in [*FAILURES, *REFUSED]:
        start = time.monotonic()
        error = failure(name, out / "failures" / name, group)
        errors[name] = [error, time.monotonic() - start]
        dist.barrier()
    (out / f"errors-{rank}.json").write_text(json.dumps(errors), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
