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
from fastrepulse.methods.repulsion import AUTO
from fastrepulse.sampling.distributed import torchrun_group
from fastrepulse.sampling.output import check_writable
from fastrepulse.sampling.request import LONG_PROMPTS, Drawing, Output

REPULSION = fastrepulse.Repulsion()
Pair = tuple[float, float]

ModelName = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(models.SHIPPED)}, a diffusers folder, a .safetensors file or a hub id; "
        "default: small."
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
    num_particles: Annotated[
        int, typer.Option("-n", "--num-particles", help="Number of images.")
    ] = Drawing.num_particles,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the images; default: out, out-2, ...")
    ] = None,
    model: ModelName = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the model predicts; default: as the model states."),
    ] = None,
    config: Config = None,
    embedding: Annotated[
        str, typer.Option(help=f"Where particles repel: {', '.join(embeddings.names())}, or none.")
    ] = str(REPULSION.embedding),
    strength: Annotated[
        float | None,
        typer.Option(help="Length of the push; below 0 attracts; default: the embedding's own."),
    ] = None,
    on: Annotated[
        Literal["noisy", "denoised"], typer.Option(help="Which latents are embedded.")
    ] = REPULSION.on,
    window: Annotated[
        Pair | None,
        typer.Option(help="Noise levels of the push, the higher one first; default: by the run."),
    ] = None,
    pause: Annotated[
        Pair | None,
        typer.Option(help="Noise levels without guidance, the higher one first."),
    ] = None,
    restart: Annotated[
        Pair | None,
        typer.Option(help="Noise levels of the restart, the higher one first."),
    ] = None,
    no_pause: Annotated[bool, typer.Option("--no-pause", help="Guidance at all levels.")] = False,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="No restart.")] = False,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Denoising steps; default: 25, or 4 for turbo.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="1 and below switches guidance off; default: 5, or 1 for turbo."),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    scheduler: Annotated[str, typer.Option(help=", ".join(models.SCHEDULERS))] = Drawing.scheduler,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a repeatable result.")] = None,
    bank: Annotated[
        Path | None,
        typer.Option(help="File of earlier runs to repel from; this run is added to it."),
    ] = None,
    unlike: Annotated[
        Path | None, typer.Option(help="Folder of images to repel from; not with --bank.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Folder of images that attract; not with --bank.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Particles in the model at once; default: by free memory.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory limit, such as 6GB; default: by free memory.")
    ] = None,
    compile: Annotated[
        Literal["auto", "yes", "no"], typer.Option(help="Run the model through torch.compile.")
    ] = "auto",
    long_prompts: Annotated[
        str, typer.Option(help=f"Prompts with too many tokens: {' or '.join(LONG_PROMPTS)}.")
    ] = Drawing.long_prompts,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints; 0: after every step.")
    ] = Output.checkpoint_every or 0.0,
    device: Device = None,
) -> None:
    """Draws different images of one prompt; under `torchrun` on all ranks together."""
    group = context.with_resource(torchrun_group())
    if out is None and group is None:
        names = chain(["out"], (f"out-{number}" for number in count(2)))
        out = next(path for path in map(Path, names) if not path.exists())
    repulsion = None
    if embedding != "none":
        repulsion = fastrepulse.Repulsion(
            embedding,
            on=on,
            window=window or AUTO,
            pause=None if no_pause else pause or AUTO,
            restart=None if no_restart else restart or AUTO,
        )
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
            # The model encodes the images, and then runs
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
        long_prompts=long_prompts,  # type: ignore[arg-type]  # checked by sample
        device=device,
        out=out,
        checkpoint_every=checkpoint_every,
        group=group,
    )
    seconds = time.perf_counter() - start
    if not _is_rank_0(group):
        return
    if bank is not None and repulsion is not None and repulsion.bank is not None:
        repulsion.bank.save(bank)
    seed = result.settings["seed"]
    table = Table("images", "seed", "repelled in", "time")
    table.add_row(str(len(result.images)), str(seed), escape(embedding), f"{seconds:.1f} s")
    console.print(table)
    console.print(f"The images: {escape(str(out))}", soft_wrap=True)


@app.command()
def resume(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the stopped run.")],
    model: Annotated[
        str | None, typer.Option(help="Default: the model that the run names.")
    ] = None,
    config: Config = None,
    bank: Annotated[
        Path | None, typer.Option(help="File of earlier runs, if the run had one.")
    ] = None,
    device: Device = None,
) -> None:
    """Continues a stopped run of `sample` from its last checkpoint."""
    group = context.with_resource(torchrun_group())
    known = None if bank is None else _open_bank(bank)
    result = fastrepulse.resume(
        folder, model=model, config=config, bank=known, device=device, group=group
    )
    if not _is_rank_0(group):
        return
    if bank is not None and known is not None:
        known.save(bank)
    console.print(f"{len(result.images)} images: {escape(str(folder))}", soft_wrap=True)


def _is_rank_0(group: Any) -> bool:
    return group is None or group.rank() == 0


def _open_bank(bank: Path) -> fastrepulse.Bank:
    check_writable(bank.parent, "the folder of bank")
    return fastrepulse.Bank.load(bank) if bank.exists() else fastrepulse.Bank()
