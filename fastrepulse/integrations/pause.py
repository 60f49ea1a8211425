"""The pause of guidance: a model for one call of a pipeline that is asked for the prompt alone."""

from typing import Any

import torch
from torch import Tensor

from fastrepulse.integrations.pipeline_run import PipelineRun
from fastrepulse.integrations.stand_in import StandIn

CONDITIONAL_FIRST = ("ZImage", "Lumina")
"""Pipelines that put the prompt into the first half of the doubled batch, not into the second."""


class PausingModel(StandIn):
    """Stands in for the UNet or transformer of a pipeline during one call.

    Guidance is w * conditional + (1 - w) * unconditional, whatever the pipeline makes of the two
    predictions. In a step of the pause both are the conditional one, so guidance has no effect:

    - If the pipeline doubles its batch, the conditional half is computed and handed out twice.
    - If it calls the model twice a step, first for the prompt, the second call is answered by the
      first.
    - If the model takes the guidance scale as an input, the scale is 1.

    Args:
        model: The pipeline's model.
        run: The run, which knows when guidance pauses.
    """

    _run: PipelineRun
    _answered: int
    """Number of the step in which the model was last asked for the prompt alone."""
    _answer: Any

    def __init__(self, model: Any, run: PipelineRun):
        vars(self).update(_part=model, _run=run, _answered=-1, _answer=None)

    def __setattr__(self, name: str, value: Any) -> None:
        # Offloading puts hooks on the model at the end of a call
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self._part, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._part, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self._run
        if not run.paused:
            return self._part(*args, **kwargs)
        latents = args[0] if args else next(iter(kwargs.values()))
        halves = len(latents) // run.batch
        if len(latents) % run.batch or halves not in (1, 2):
            raise ValueError(
                "pipe must compute one or two predictions of each image a step, got "
                f"{type(run.call.pipe).__name__} with {len(latents)} of {run.batch} images"
            )
        if self._answered != run.taken:
            if halves == 2:
                args, kwargs = _half((args, kwargs), latents, self._conditional_half(len(latents)))
            self._answer = self._part(*args, **self._unguided(kwargs))
            self._answered = run.taken
        return _twice(self._answer) if halves == 2 else self._answer

    def _conditional_half(self, rows: int) -> slice:
        first = type(self._run.call.pipe).__name__.startswith(CONDITIONAL_FIRST)
        return slice(rows // 2) if first else slice(rows // 2, None)

    def _unguided(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns arguments of the model with a guidance scale of 1, if it takes one."""
        scale, guidance = self._run.call.embedded_scale, kwargs.get("guidance")
        return kwargs if guidance is None or not scale else kwargs | {"guidance": guidance / scale}


def _half(value: Any, latents: Any, part: slice) -> Any:
    """Returns arguments with a part of each batch; a batch is as long as the latents.

    Some models take lists of tensors instead of batches, for the latents too.
    """
    if isinstance(value, Tensor):
        return value[part] if value.shape[:1] == (len(latents),) else value
    if isinstance(value, list) and isinstance(latents, list) and len(value) == len(latents):
        return value[part]
    if isinstance(value, dict):
        return {name: _half(each, latents, part) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_half(each, latents, part) for each in value)
    return value


def _twice(output: Any) -> Any:
    """Returns a model's output for one half of a batch as that of both halves."""
    if isinstance(output, Tensor):
        return torch.cat([output, output])
    if isinstance(output, list):
        return output + output
    if isinstance(output, tuple):
        return tuple(map(_twice, output))
    return type(output)(**{name: _twice(each) for name, each in vars(output).items()})
