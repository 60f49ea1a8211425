"""A guider for one call of a pipeline: it counts a repeated step as the step that it repeats."""

from typing import Any

from fastrepulse.integrations.pipeline_run import PipelineRun
from fastrepulse.integrations.stand_in import StandIn


class CountedGuider(StandIn):
    """Stands in for a guider of diffusers, which decides by a step's number whether it guides.

    A pipeline counts on through the repeated steps of the restart, beyond the number of steps.

    Args:
        guider: The pipeline's guider.
        run: The run, which knows the number of each step.
    """

    def __init__(self, guider: Any, run: PipelineRun):
        super().__init__(guider)
        self._run = run

    def set_state(self, step: int, *args: Any, **kwargs: Any) -> None:
        self._part.set_state(self._run.step, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._part(*args, **kwargs)
