"""What a loop needs to go on from where it is: tensors, and a record that JSON can hold."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fastrepulse.sampling.loop import DenoiseLoop
from fastrepulse.sampling.results import StepDiagnostics

METHOD, SCHEDULER = "method.", "scheduler."
"""Before the names of what belongs to them."""


def state_of(loop: DenoiseLoop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns everything that the steps to come depend on, beside the settings of the run.

    It is that of all processes, where several share the run, and the same on each of them.
    What is random is drawn anew from the seed and the number of the step, and has no state.
    """
    remembered, about_method = ({}, {}) if loop.method is None else loop.method.state()
    outputs, about_scheduler = scheduler_state(loop.schedulers, loop.scheduler)
    gather = loop.share.gather
    tensors = {
        "x": gather(loop.x),
        **{METHOD + name: tensor for name, tensor in remembered.items()},
        **{SCHEDULER + name: gather(tensor) for name, tensor in outputs.items()},
    }
    record = {
        "start": loop.start,
        "taken": loop.taken,
        "diagnostics": [asdict(step) for step in loop.diagnostics],
        "scheduler": about_scheduler,
        "method": about_method,
    }
    return tensors, record


def restore(loop: DenoiseLoop, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Takes a loop that has just been made to where another was, whose `state_of` this is."""

    def of(owner: str) -> dict[str, Tensor]:
        own = (name for name in tensors if name.startswith(owner))
        return {name.removeprefix(owner): tensors[name] for name in own}

    loop.x.copy_(loop.share.own(tensors["x"]))
    loop.taken = record["taken"]
    loop.diagnostics = [StepDiagnostics(**step) for step in record["diagnostics"]]
    outputs = {name: loop.share.own(rows) for name, rows in of(SCHEDULER).items()}
    for part, scheduler in zip(loop.parts, loop.schedulers, strict=True):
        own = {name: rows[part].to(loop.denoise.device) for name, rows in outputs.items()}
        restore_scheduler(scheduler, own, record["scheduler"])
    if loop.method is not None:
        loop.method.restore(of(METHOD), record["method"])


def scheduler_state(
    schedulers: Sequence[Any], untouched: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns what schedulers have that one of theirs without a step has not.

    Args:
        schedulers: One for each micro-batch, all at the same step.
        untouched: One that has taken no step.

    Returns:
        What they keep of each particle, [prompts * N, ...], a list of such under numbered names;
        and what is the same for all of them.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in vars(schedulers[0]).items():
        if _alike(value, vars(untouched).get(name)):
            continue
        if not isinstance(value, list):
            values[name] = value
            continue
        for i, kept in enumerate(value):
            if kept is not None:
                tensors[f"{name}.{i}"] = torch.cat([getattr(own, name)[i] for own in schedulers])
        values[name] = [None] * len(value)
    return tensors, values


def restore_scheduler(scheduler: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Gives a scheduler what `scheduler_state` found, of the particles of its micro-batch."""
    for name, value in values.items():
        setattr(scheduler, name, list(value) if isinstance(value, list) else value)
    for key, rows in tensors.items():
        name, _, i = key.rpartition(".")
        getattr(scheduler, name)[int(i)] = rows


def _alike(one: Any, other: Any) -> bool:
    """Says whether two values of an attribute are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other) and one == other
