"""Gives a pipeline the scheduler and the model of a run, for one call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastrepulse.integrations.call import model_name
from fastrepulse.integrations.pause import PausingModel
from fastrepulse.integrations.pipeline_run import PipelineRun
from fastrepulse.integrations.restarting import RestartingScheduler
from fastrepulse.integrations.scheduler import repels
from fastrepulse.schedule import check_scheduler


@contextmanager
def repelling(pipe: Any, run: PipelineRun) -> Iterator[None]:
    """Lets stand-ins take the places of a pipeline's scheduler and model.

    Raises:
        ValueError: If the scheduler is of a kind that is refused, or repels already.
    """
    scheduler, model = pipe.scheduler, model_name(pipe)
    if repels(scheduler):
        raise ValueError("scheduler must be a plain one, got one that repels already")
    check_scheduler(scheduler)
    parts = {"scheduler": scheduler, model: getattr(pipe, model)}
    vars(pipe)["scheduler"] = RestartingScheduler(scheduler, run)
    vars(pipe)[model] = PausingModel(parts[model], run)
    try:
        yield
    finally:
        vars(pipe).update(parts)
