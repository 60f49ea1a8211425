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
        **{SCHEDULER + name: gather(kept) if kept.ndim else kept for name, kept in outputs.items()},
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
    outputs = {
        name: loop.share.own(kept) if kept.ndim else kept for name, kept in of(SCHEDULER).items()
    }
    for part, scheduler in zip(loop.parts, loop.schedulers, strict=True):
        own = {name: kept[part] if kept.ndim else kept for name, kept in outputs.items()}
        on_device = {name: kept.to(loop.denoise.device) for name, kept in own.items()}
        restore_scheduler(scheduler, on_device, record["scheduler"])
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
        Tensors by name: what they keep of each particle, [prompts * N, ...], and what has no
        dimension and is the same for all; numbered where they are in a list. And what is no tensor.
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
    """Gives a scheduler what `scheduler_state` found, of the particles of its micro-batch."""
    for name, value in values.items():
        setattr(scheduler, name, list(value) if isinstance(value, list) else value)
    for key, kept in tensors.items():
        name, _, i = key.partition(".")
        if i:
            getattr(scheduler, name)[int(i)] = kept
        else:
            setattr(scheduler, name, kept)


def _alike(one: Any, other: Any) -> bool:
    """Says whether two values of an attribute are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other) and one == other
