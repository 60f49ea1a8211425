"""`resume()`: a run that was killed goes on from its last checkpoint."""

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
from fastrepulse.sampling.finish import finish
from fastrepulse.sampling.prepare import prepare
from fastrepulse.sampling.ranks import Ranks
from fastrepulse.sampling.request import Request
from fastrepulse.sampling.results import SampleResult
from fastrepulse.sampling.sample import DEFAULT_CHECKPOINT_EVERY
from fastrepulse.sampling.state import restore
from fastrepulse.torch_settings import undisturbed

MAY_DIFFER = ("model", "device", "latents_given")
"""Settings that do not matter to the steps that are left; the model's weights are compared."""


@undisturbed()
def resume(
    folder: str | Path,
    *,
    model: Any = None,
    config: str | Path | None = None,
    repulsion: Method | None = None,
    bank: Bank | None = None,
    checkpoint_every: float | None = DEFAULT_CHECKPOINT_EVERY,
    group: Any = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> SampleResult:
    """Goes on with a run of `sample(..., out=folder)` that was stopped, from its last checkpoint.

    The pictures are those that the run would have drawn, and those that it had drawn already are
    kept. On another kind of machine they may differ by rounding.

    Args:
        folder: That of the run.
        model: As `sample` takes it, where the run's settings do not name it: for a pipeline.
        config: As `load_model` takes it, for a single-file checkpoint.
        repulsion: The method, where its settings do not say all of it: for an embedding of your
            own, or protected latents.
        bank: That of the run, as it was when the run began, so that the run is added to it.
        checkpoint_every: As `sample` takes it.
        group: As `sample` takes it; of any number of processes, whatever the run had before.
        memory: As `sample` takes it, for decoding; the micro-batch is that of the run.
        device: Where it goes on; by default a CUDA GPU if there is one, else the CPU.
        progress: Whether to show a progress bar.

    Returns:
        What `sample` would have returned.

    Raises:
        FileNotFoundError: If the folder has no checkpoint, or the model is gone.
        ValueError: If all checkpoints are damaged, or of another model, version or setting; names
            what differs.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    ranks = Ranks(group)
    with ranks.voting():
        tensors, record = last_checkpoint(folder)
        settings = record["settings"]
        request = Request.from_settings(
            settings,
            repulsion=_method(settings["repulsion"], repulsion, bank),
            model=model,
            memory=memory,
            device=device,
            progress=progress and ranks.rank == 0,
            group=group,
            **{name: record[name] for name in ("micro_batch_size", "compile", "attention")},
        )
        if model is None:
            model = settings["model"]
        # Which a checkpoint may not say itself; any other is the one that is loaded already
        named = isinstance(model, (str, Path)) and Path(model).is_file()
        predicts = settings["prediction_type"] if named else None
        sd = load_model(model, device, request.dtype, prediction_type=predicts, config=config)
        _check_same(record, {"made_with": made_with(sd), "settings": request.settings(sd)})
        share = ranks.share(len(request.prompts), request.num_particles)
        own = share.own(tensors["x"])
        loop = prepare(request, sd, torch.zeros_like(own), share, record["loop"]["start"])
        restore(loop, tensors, record["loop"])
        about = {name: value for name, value in record.items() if name != "loop"}
        checkpoints = Checkpoints(folder, checkpoint_every, about)
        return finish(request, sd, loop, checkpoints, settings, folder)


def _method(
    settings: Mapping[str, Any] | None, given: Method | None, bank: Bank | None
) -> Method | None:
    """Returns the method of a run, of which some may be given."""
    method = given
    if given is None and settings is not None:
        try:
            method = method_from_settings(settings)
        except ValueError as error:
            raise ValueError(f"repulsion must be given to go on with this run: {error}") from None
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
    """Raises if a run would not go on as it began."""
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
        raise ValueError(f"folder has a checkpoint of another kind: {'; '.join(differ)}")
