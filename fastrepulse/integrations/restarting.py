"""A scheduler for one call of a pipeline: it repels, and takes the steps of a restart twice."""

import copy
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from fastrepulse.integrations.pipeline_run import PipelineRun
from fastrepulse.integrations.stand_in import StandIn
from fastrepulse.schedule import step_number


class RestartingScheduler(StandIn):
    """Stands in for a diffusers scheduler during one call of a pipeline.

    The repeated steps are in its `timesteps`, which the pipeline walks through. The steps are taken
    by a plain copy; after the restart by a new one, since multistep schedulers keep outputs.

    Args:
        scheduler: The pipeline's scheduler.
        run: The run, which knows the steps and the repulsion.
    """

    def __init__(self, scheduler: Any, run: PipelineRun):
        super().__init__(copy.deepcopy(scheduler))
        self._run = run
        self._unused = self._part
        # Pipelines look at signatures to see what a scheduler takes
        for name in ("set_timesteps", "step", "scale_model_input", "set_begin_index"):
            if hasattr(scheduler, name):
                own = partial(getattr(self, f"_{name}"))
                setattr(self, name, wraps(getattr(scheduler, name))(own))

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self._unused.set_timesteps(*args, **kwargs)
        self._part = copy.deepcopy(self._unused)
        steps = self._run.plan(self._unused)
        self.timesteps = self._part.timesteps
        if len(steps) == len(self.timesteps):
            vars(self).pop("sigmas", None)
            return
        if hasattr(self._part, "sigmas"):
            last = self._part.sigmas[len(self.timesteps) :]
            self.sigmas = torch.cat([self._part.sigmas[steps], last])
        self.timesteps = self.timesteps[steps]

    def _scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        if timestep is not None:
            self._run.begin_at(step_number(self._part, timestep))
        return self._part.scale_model_input(sample, timestep)

    def _set_begin_index(self, begin_index: int = 0) -> None:
        self._run.begin_at(begin_index)
        self._part.set_begin_index(begin_index)

    def _step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        run, plain = self._run, self._part
        run.begin_at(step_number(plain, timestep))
        output = run.repelled(plain, model_output, sample)
        result = plain.step(output, timestep, sample, *args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        reached, earlier = run.step + 1, run.advance(latents)
        if earlier is None:
            return result
        self._part = self._unused_at(earlier)
        latents = run.renoised(latents, reached, earlier)
        if isinstance(result, tuple):
            return latents, *result[1:]
        result.prev_sample = latents
        return result

    def _unused_at(self, step: int) -> Any:
        """Returns a plain scheduler that has taken no step and begins with a step."""
        scheduler = copy.deepcopy(self._unused)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(step)
        return scheduler
