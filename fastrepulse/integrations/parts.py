"""Gives a pipeline the scheduler, the model and the guider of a run, for one call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastrepulse.integrations.call import model_name
from fastrepulse.integrations.counted_guider import CountedGuider
from fastrepulse.integrations.pause import PausingModel
from fastrepulse.integrations.pipeline_run import PipelineRun
from fastrepulse.integrations.restarting import RestartingScheduler
from fastrepulse.integrations.scheduler import repels
from fastrepulse.schedule import check_scheduler

GUIDERS = ("guider", "ocr_guider")
"""Names under which pipelines keep guiders."""


@contextmanager
def repelling(pipe: Any, run: PipelineRun) -> Iterator[None]:
    """Lets stand-ins take the places of a pipeline's scheduler, model and guiders.

    Raises:
        ValueError: If the scheduler is of a kind that is refused, or repels already.
    """
    scheduler, model = pipe.scheduler, model_name(pipe)
    if repels(scheduler):
        raise ValueError("scheduler must be a plain one, got one that repels already")
    check_scheduler(scheduler)
    guiders = {name: vars(pipe)[name] for name in GUIDERS if vars(pipe).get(name) is not None}
    parts = {"scheduler": scheduler, model: getattr(pipe, model), **guiders}
    vars(pipe)["scheduler"] = RestartingScheduler(scheduler, run)
    vars(pipe)[model] = PausingModel(parts[model], run)
    vars(pipe).update({name: CountedGuider(guider, run) for name, guider in guiders.items()})
    try:
        yield
        if run.repulsion.bank is not None:
            # A call with `denoising_end` ends before the last step of its schedule
            run.repulsion.bank.close()
    finally:
        vars(pipe).update(parts)
