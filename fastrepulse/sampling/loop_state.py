"""The state of a loop for a checkpoint: tensors, and a record for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.results import StepDiagnostics

METHOD, SCHEDULER = "method.", "scheduler."
"""Prefixes of the tensors of the method and the scheduler."""


def state_of(loop: DenoiseLoop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns everything that the remaining steps depend on, except the run's settings.

    The state is that of all ranks, and equal on each rank. Random numbers depend on the seed and
    the step alone, so they need no state.
    """
    remembered, about_method = loop.method.state()
    outputs, about_scheduler = scheduler_state(loop.schedulers, loop.scheduler)
    gather = loop.partition.all_gather
    tensors = {
        "x": gather(loop.x),
        **{METHOD + name: tensor for name, tensor in remembered.items()},
        **{SCHEDULER + name: gather(kept) if kept.ndim else kept for name, kept in outputs.items()},
    }
    record = {
        "done": loop.done,
        "diagnostics": [asdict(step) for step in loop.diagnostics],
        "scheduler": about_scheduler,
        "method": about_method,
    }
    return tensors, record


def restore(loop: DenoiseLoop, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Restores a new loop from what `state_of` returned."""

    def of(owner: str) -> dict[str, Tensor]:
        own = (name for name in tensors if name.startswith(owner))
        return {name.removeprefix(owner): tensors[name] for name in own}

    loop.x.copy_(loop.partition.local(tensors["x"]))
    loop.done = record["done"]
    loop.diagnostics = [StepDiagnostics(**step) for step in record["diagnostics"]]
    outputs = {
        name: loop.partition.local(kept) if kept.ndim else kept
        for name, kept in of(SCHEDULER).items()
    }
    for part, scheduler in zip(loop.parts, loop.schedulers, strict=True):
        own = {name: kept[part] if kept.ndim else kept for name, kept in outputs.items()}
        on_device = {name: kept.to(loop.denoise.device) for name, kept in own.items()}
        restore_scheduler(scheduler, on_device, record["scheduler"])
    loop.method.restore(of(METHOD), record["method"])


def scheduler_state(
    schedulers: Sequence[Any], untouched: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the attributes in which schedulers differ from one that has taken no step.

    Args:
        schedulers: The scheduler of each micro-batch, all at the same step.
        untouched: A scheduler that has taken no step.

    Returns:
        Tensors by name, numbered if they are in a list: [prompts * N, ...] for what is kept per
        particle, scalars for what all particles share. And all other attributes.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}

    def keep(name: str, kept: list[Any]) -> Any:
        if not isinstance(kept[0], Tensor):
            return kept[0]
        tensors[name] = torch.cat(kept) if kept[0].ndim else kept[0]
        return None

    for name, value in vars(schedulers[0]).items():
        if _alike(value, vars(untouched).get(name)):
            continue
        held = [getattr(own, name) for own in schedulers]
        if isinstance(value, list):
            columns = enumerate(zip(*held, strict=True))
            values[name] = [keep(f"{name}.{i}", list(column)) for i, column in columns]
        else:
            values[name] = keep(name, held)
    return tensors, values


def restore_scheduler(scheduler: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Sets the attributes that `scheduler_state` returned, for the particles of one micro-batch."""
    for name, value in values.items():
        setattr(scheduler, name, list(value) if isinstance(value, list) else value)
    for key, kept in tensors.items():
        name, _, i = key.partition(".")
        if i:
            getattr(scheduler, name)[int(i)] = kept
        else:
            setattr(scheduler, name, kept)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of an attribute are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other) and one == other
