"""`fastrepulse sample` and `resume`."""

import time
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

import fastrepulse
from fastrepulse import embeddings, models
from fastrepulse.cli.app import app, console
from fastrepulse.sampling.output import check_writable
from fastrepulse.sampling.ranks import joined
from fastrepulse.sampling.sample import (
    DEFAULT_CHECKPOINT_EVERY,
    DEFAULT_GUIDANCE_SCALE,
    DEFAULT_REPULSION,
    DEFAULT_STEPS,
)

ModelName = Annotated[
    str | None,
    typer.Option(
        help="A diffusers folder, a .safetensors checkpoint or a hub id; left out: the shipped one."
    ),
]
Config = Annotated[
    Path | None, typer.Option(help="Folder with the configurations and tokenizers of a checkpoint.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...")]


@app.command()
def sample(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    num_particles: Annotated[int, typer.Option("-n", "--num-particles", help="How many.")] = 16,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; left out: out, out-2, ...")
    ] = None,
    model: ModelName = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the model predicts; left out: what it says itself."),
    ] = None,
    config: Config = None,
    embedding: Annotated[
        str, typer.Option(help=f"Where particles repel: {', '.join(embeddings.names())}, or none.")
    ] = str(DEFAULT_REPULSION.embedding),
    strength: Annotated[
        float | None,
        typer.Option(help="Of the repulsion, below 0 attracts; left out: the embedding's own."),
    ] = None,
    on: Annotated[
        Literal["noisy", "denoised"], typer.Option(help="What is embedded.")
    ] = DEFAULT_REPULSION.on,
    window: Annotated[
        tuple[float, float], typer.Option(help="Noise levels (from, to), the higher one first.")
    ] = DEFAULT_REPULSION.window,
    spread: Annotated[
        float, typer.Option(help="Of the push in the noisy latents, at all noise levels.")
    ] = DEFAULT_REPULSION.spread,
    num_inference_steps: Annotated[int, typer.Option(help="Denoising steps.")] = DEFAULT_STEPS,
    guidance_scale: Annotated[
        float, typer.Option(help="1 and below switches it off.")
    ] = DEFAULT_GUIDANCE_SCALE,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    scheduler: Annotated[Literal["euler", "ddim", "dpm++", "unipc"], typer.Option()] = "euler",
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="For a repeatable result.")] = None,
    bank: Annotated[
        Path | None,
        typer.Option(help="File of earlier runs to repel from too; this one is added to it."),
    ] = None,
    unlike: Annotated[
        Path | None, typer.Option(help="Folder of pictures to repel from; not with --bank.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Folder of pictures to be drawn to; not with --bank.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Particles in the model at once; left out: by free memory.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="The most to take, such as 6GB; left out: by free memory.")
    ] = None,
    compile: Annotated[
        Literal["auto", "yes", "no"], typer.Option(help="Run the model through torch.compile.")
    ] = "auto",
    long_prompts: Annotated[
        Literal["cut", "chunks"], typer.Option(help="Prompts that the text encoder cannot take.")
    ] = "cut",
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints for `resume`; 0: after every step.")
    ] = DEFAULT_CHECKPOINT_EVERY,
    device: Device = None,
) -> None:
    """Draws pictures of a prompt that differ from each other; under `torchrun` by all processes."""
    group = context.with_resource(joined())
    if out is None and group is None:
        names = chain(["out"], (f"out-{number}" for number in count(2)))
        out = next(path for path in map(Path, names) if not path.exists())
    repulsion = None
    if embedding != "none":
        repulsion = fastrepulse.Repulsion(embedding, on=on, window=window, spread=spread)
        if strength is not None:
            repulsion = replace(repulsion, strength=strength)
    used: str | models.Model | None = model
    if prediction_type is not None or config is not None:
        used = models.load_model(model, device, prediction_type=prediction_type, config=config)
    folders = unlike is not None or like is not None
    if bank is not None or folders:
        if repulsion is None or (bank is not None and folders):
            raise ValueError(
                "bank must be without unlike and like, and all of them with an embedding, got "
                f"embedding {embedding}, bank {bank}, unlike {unlike} and like {like}"
            )
        if bank is not None:
            known = _open_bank(bank)
        else:
            # For the pictures, and then for the run
            used = models.load_model(used, device)
            known = fastrepulse.Bank.of_folders(used, unlike, like, height, width)
        repulsion = replace(repulsion, bank=known)
    start = time.perf_counter()
    result = fastrepulse.sample(
        prompt,
        num_particles,
        model=used,
        repulsion=repulsion,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        scheduler=scheduler,
        height=height,
        width=width,
        seed=seed,
        micro_batch_size=micro_batch_size,
        memory=memory,
        compile="auto" if compile == "auto" else compile == "yes",
        long_prompts=long_prompts,
        device=device,
        out=out,
        checkpoint_every=checkpoint_every,
        group=group,
    )
    seconds = time.perf_counter() - start
    if not _leads(group):
        return
    if bank is not None and repulsion is not None and repulsion.bank is not None:
        repulsion.bank.save(bank)
    table = Table("pictures", "seed", "repelled in", "time", "folder")
    table.add_row(
        str(len(result.images)),
        str(result.settings["seed"]),
        escape(embedding),
        f"{seconds:.1f} s",
        escape(str(out)),
    )
    console.print(table)


@app.command()
def resume(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="That of the run.")],
    model: Annotated[str | None, typer.Option(help="Left out: the one that the run names.")] = None,
    config: Config = None,
    bank: Annotated[
        Path | None, typer.Option(help="File of earlier runs, if the run had one.")
    ] = None,
    device: Device = None,
) -> None:
    """Goes on with a run of `sample` that was stopped, from its last checkpoint."""
    group = context.with_resource(joined())
    known = None if bank is None else _open_bank(bank)
    result = fastrepulse.resume(
        folder, model=model, config=config, bank=known, device=device, group=group
    )
    if not _leads(group):
        return
    if bank is not None and known is not None:
        known.save(bank)
    console.print(f"{len(result.images)} pictures: {escape(str(folder))}", soft_wrap=True)


def _leads(group: Any) -> bool:
    """Says whether this process speaks for all."""
    return group is None or group.rank() == 0


def _open_bank(bank: Path) -> fastrepulse.Bank:
    check_writable(bank.parent, "the folder of bank")
    return fastrepulse.Bank.load(bank) if bank.exists() else fastrepulse.Bank()
