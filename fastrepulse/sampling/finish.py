"""From a loop that is ready, at its first step or a later one, to the pictures."""

from pathlib import Path
from typing import Any

from fastrepulse.layers import accelerated
from fastrepulse.models import Model
from fastrepulse.sampling.checkpoint import Checkpoints
from fastrepulse.sampling.decode import decode
from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.prepare import budget_of
from fastrepulse.sampling.request import Request
from fastrepulse.sampling.results import SampleResult, StepEnd


def finish(
    request: Request,
    model: Model,
    loop: DenoiseLoop,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
    folder: Path | None,
) -> SampleResult:
    """Takes the steps that are left, with checkpoints on the way, and draws the pictures."""

    def after_step(loop: DenoiseLoop) -> None:
        checkpoints.after_step(loop)
        if request.callback_on_step_end is not None:
            last = loop.diagnostics[-1]
            request.callback_on_step_end(StepEnd(loop.taken, loop.of, loop.denoised, last))

    with accelerated(model.unet, request.attention):
        diagnostics = loop.run(progress=request.progress, after_step=after_step)
    result = SampleResult([], loop.x, diagnostics, settings)
    budget = budget_of(request, model, loop.x)
    with checkpoints.guarding(loop):
        return decode(model, result, loop.share, folder, budget, request.progress)
