"""`resume()`: a stopped run goes on from its last checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastrepulse.methods.bank import Bank
from fastrepulse.methods.base import Method
from fastrepulse.methods.from_settings import method_from_settings
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models import load_model
from fastrepulse.sampling.checkpoint import Checkpoints, last_checkpoint, made_with
from fastrepulse.sampling.distributed import Ranks
from fastrepulse.sampling.loop_state import restore
from fastrepulse.sampling.request import Computing, Drawing, Output
from fastrepulse.sampling.results import SampleResult
from fastrepulse.sampling.run import new_loop, run
from fastrepulse.torch_settings import undisturbed

MAY_DIFFER = ("model", "device", "latents_given")
"""Settings that may differ from the stopped run's; the model's weights are compared instead."""


@undisturbed()
def resume(
    folder: str | Path,
    *,
    model: Any = None,
    config: str | Path | None = None,
    repulsion: Method | None = None,
    bank: Bank | None = None,
    checkpoint_every: float | None = Output.checkpoint_every,
    group: Any = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> SampleResult:
    """Continues a stopped run of `sample(..., out=folder)` from its last checkpoint.

    The images are equal to those of an uninterrupted run, and images already written are kept. On
    another kind of machine the images may differ by rounding.

    Args:
        folder: Folder of the stopped run.
        model: As for `sample`, if the run's settings do not name the model: for a pipeline.
        config: As for `load_model`, for a single-file checkpoint.
        repulsion: The method, if its settings do not describe it fully: for an embedding of your
            own, or protected latents.
        bank: The run's bank as it was when the run began; the run is added to it.
        checkpoint_every: As for `sample`.
        group: As for `sample`, with any number of ranks.
        memory: As for `sample`, for decoding; the micro-batch size is the run's.
        device: Device of the remaining steps; by default a CUDA GPU if there is one, else the CPU.
        progress: Whether to show a progress bar.

    Returns:
        What `sample` would have returned.

    Raises:
        FileNotFoundError: If the folder has no checkpoint, or the model does not exist.
        ValueError: If all checkpoints are damaged, or are of another model, version or setting;
            names the difference.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    ranks = Ranks(group)
    with ranks.failing_together():
        tensors, record = last_checkpoint(folder)
        settings = record["settings"]
        method = _method(settings["repulsion"], repulsion, bank)
        if model is None:
            model = settings["model"]
        # A single file may not state its prediction type; other models do
        is_file = isinstance(model, (str, Path)) and Path(model).is_file()
        prediction_type = settings["prediction_type"] if is_file else None
        dtype = getattr(torch, settings["dtype"])
        loaded = load_model(model, device, dtype, prediction_type=prediction_type, config=config)
        drawing = Drawing.from_settings(settings, model, method)
        computing = Computing(
            memory=memory,
            group=group,
            device=device,
            dtype=dtype,
            **{name: record[name] for name in ("micro_batch_size", "compile", "attention")},
        )
        output = Output(folder, checkpoint_every, progress=progress and ranks.rank == 0)
        here = {"made_with": made_with(loaded), "settings": drawing.settings(loaded)}
        _check_same(record, here)
        partition = ranks.partition(len(drawing.prompts), drawing.num_particles)
        noise = torch.zeros_like(partition.local(tensors["x"]))
        loop = new_loop(drawing, computing, loaded, noise, partition)
        restore(loop, tensors, record["loop"])
        about = {name: value for name, value in record.items() if name != "loop"}
        checkpoints = Checkpoints(folder, checkpoint_every, about)
        return run(drawing, computing, output, loaded, loop, checkpoints, settings)


def _method(
    settings: Mapping[str, Any] | None, given: Method | None, bank: Bank | None
) -> Method | None:
    """Returns the method of a run from its settings, or from what the caller gave."""
    method = given
    if given is None and settings is not None:
        try:
            method = method_from_settings(settings)
        except ValueError as error:
            raise ValueError(f"repulsion must be given to resume this run: {error}") from None
    if bank is None:
        return method
    recorded = None if settings is None else settings.get("bank")
    if not isinstance(method, Repulsion) or recorded != len(bank):
        raise ValueError(
            f"bank must be as it was when the run began, which had {recorded} particles, "
            f"got {len(bank)}"
        )
    return replace(method, bank=bank)


def _check_same(record: Mapping[str, Any], here: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises if the settings here differ from those of the stopped run."""
    differ = []
    for group, values in here.items():
        for name, value in values.items():
            recorded = record[group].get(name)
            if isinstance(value, dict) and isinstance(recorded, dict):
                # A bank grows with the run
                value = value | {"bank": recorded.get("bank")} if "bank" in value else value
            if name not in MAY_DIFFER and value != recorded:
                differ.append(f"{name} was {recorded!r}, here it is {value!r}")
    if differ:
        raise ValueError(f"folder has a checkpoint that does not fit: {'; '.join(differ)}")
