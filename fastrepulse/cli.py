"""The command line: `fastrepulse sample`, `decode`, `demo`, `evaluate`, `info`."""

import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fastrepulse
from fastrepulse import embeddings, models
from fastrepulse.default_model.figures import Figures
from fastrepulse.kernels import dispatch
from fastrepulse.sampling.decode import decode_folder
from fastrepulse.sampling.output import check_writable
from fastrepulse.sampling.sample import (
    DEFAULT_GUIDANCE_SCALE,
    DEFAULT_REPULSION,
    DEFAULT_STEPS,
)

app = typer.Typer(
    help="The images of one prompt, different from each other.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


@app.command()
def sample(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    num_particles: Annotated[int, typer.Option("-n", "--num-particles", help="How many.")] = 16,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; left out: out, out-2, ...")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A diffusers folder, a .safetensors checkpoint or a hub id; left out: the shipped "
            "one."
        ),
    ] = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="What the model predicts; left out: what it says itself."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Folder with the configurations and tokenizers of a checkpoint."),
    ] = None,
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
    scheduler: Annotated[Literal["euler", "ddim", "dpm++"], typer.Option()] = "euler",
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
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Particles in the model at once; left out: by free memory.")
    ] = None,
    compile: Annotated[
        Literal["auto", "yes", "no"], typer.Option(help="Run the model through torch.compile.")
    ] = "auto",
    long_prompts: Annotated[
        Literal["cut", "chunks"], typer.Option(help="Prompts that the text encoder cannot take.")
    ] = "cut",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Draws pictures of a prompt that differ from each other."""
    if out is None:
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
    if bank is not None or unlike is not None:
        if repulsion is None or (bank is not None and unlike is not None):
            raise ValueError(
                "bank and unlike must be one of them alone, with an embedding, got "
                f"embedding {embedding}, bank {bank} and unlike {unlike}"
            )
        if bank is not None:
            known = _open_bank(bank)
        else:
            assert unlike is not None
            # For its pictures, and then for the run
            used = models.load_model(used, device)
            known = fastrepulse.Bank(models.encode_folder(unlike, used, height, width))
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
        compile="auto" if compile == "auto" else compile == "yes",
        long_prompts=long_prompts,
        device=device,
        out=out,
    )
    seconds = time.perf_counter() - start
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
def decode(
    folder: Annotated[Path, typer.Argument(help="Where a run that was stopped left its latents.")],
    model: Annotated[str | None, typer.Option(help="Left out: the one that the run names.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
) -> None:
    """Draws the pictures that are missing from a run that was stopped while it decoded."""
    result = decode_folder(folder, model=model, device=device)
    console.print(f"{len(result.images)} pictures: {escape(str(folder))}", soft_wrap=True)


def _open_bank(bank: Path) -> fastrepulse.Bank:
    check_writable(bank.parent, "the folder of bank")
    return fastrepulse.Bank.load(bank) if bank.exists() else fastrepulse.Bank()


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="One of the shipped model's.")] = "a robot",
    num_particles: Annotated[int, typer.Option("-n", "--num-particles")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
    seed: Annotated[int, typer.Option()] = 0,
    guidance_scale: Annotated[float, typer.Option(help="Of both.")] = DEFAULT_GUIDANCE_SCALE,
    strength: Annotated[float, typer.Option(help="Of the repulsion.")] = DEFAULT_REPULSION.strength,
) -> None:
    """Samples one prompt independently and repelled, and measures both."""
    from fastrepulse import demo as main_job

    check_writable(out)
    comparison = main_job.compare(prompt, num_particles, seed, guidance_scale, strength)
    path = main_job.save(comparison, out)
    console.print(_compared(prompt, *comparison.figures))
    console.print(f"The pictures, side by side: {escape(str(path))}", soft_wrap=True)


def _compared(prompt: str, independent: Figures, repelled: Figures) -> Table:
    """Returns the figures side by side, with an arrow for better or worse."""
    rows = (
        ("different pictures (attribute Vendi)", "attribute_vendi", ".2f", 1),
        ("attribute values that appear", "coverage", ".0%", 1),
        ("most common value", "most_common", ".0%", -1),
        ("pictures of the subject", "accuracy", ".0%", 1),
        ("distance off data (1: rendered)", "off_data", ".2f", -1),
    )
    table = Table("", "independent", "repelled", "", title=prompt)
    for title, name, form, better in rows:
        before, after = getattr(independent, name), getattr(repelled, name)
        change = better * (after - before)
        same = f"{before:{form}}" == f"{after:{form}}"
        arrow = "=" if same else "[green]▲ better" if change > 0 else "[yellow]▼ worse"
        table.add_row(title, f"{before:{form}}", f"{after:{form}}", arrow)
    return table


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for runs, tables, plots and the report.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Few settings and one seed, in five minutes.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="How many; left out: 10, or 1 with --quick.")
    ] = None,
    num_particles: Annotated[int, typer.Option("-n", "--num-particles", help="Per prompt.")] = 16,
    guidance_scale: Annotated[float, typer.Option(help="Of every run.")] = DEFAULT_GUIDANCE_SCALE,
    cleanliness: Annotated[
        float, typer.Option(help="Times full captions' distance off data that is allowed.")
    ] = 1.05,
    methods: Annotated[
        str | None, typer.Option(help="Names of the table, with commas; left out: all.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Rendered pictures; left out: those that ship.")
    ] = None,
) -> None:
    """Compares repulsion with other methods on the shipped model; goes on where it stopped."""
    from fastrepulse import evaluation

    compared = evaluation.QUICK if quick else evaluation.ALL
    if methods is not None:
        compared = evaluation.select(compared, [name.strip() for name in methods.split(",")])
    evaluation.evaluate(
        out,
        compared,
        num_seeds=seeds if seeds is not None else 1 if quick else 10,
        num_particles=num_particles,
        guidance_scale=guidance_scale,
        rule=evaluation.Rule(cleanliness=cleanliness),
        calibration_seeds=(1000,) if quick else (1000, 1001),
        data=data,
        compile=not quick,
    )
    console.print(f"The report: {escape(str(out / 'report.html'))}", soft_wrap=True)


@app.command()
def info() -> None:
    """Says what is installed and what it would run on."""
    import torch

    table = Table(show_header=False)
    table.add_row("fastrepulse", fastrepulse.__version__)
    for package in ("torch", "diffusers", "transformers", "triton"):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "not installed")
    table.add_row("python", platform.python_version())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    table.add_row("GPU", gpu)
    table.add_row("CPU threads", str(torch.get_num_threads()))
    for backend in dispatch.BACKENDS:
        serves = [dispatch.describe(backend, device) for device in ("cpu", "cuda")]
        table.add_row(f"kernels: {backend}", "\n".join(serves))
    table.add_row("embeddings", ", ".join(embeddings.names()))
    table.add_row("schedulers", ", ".join(models.SCHEDULERS))
    table.add_row("shipped model", str(models.DEFAULT_MODEL))
    console.print(table)


def main() -> None:
    """Runs the command line; what goes wrong is one line and an exit code, not a traceback."""
    # Large tensors on huge pages: page faults are a fifth of the time on the CPU
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Abort:
        _fail("stopped", 130)
    except typer.TyperException as error:
        _fail(error.format_message(), 2)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _fail(str(error), 2)
    except (FloatingPointError, RuntimeError) as error:
        _fail(str(error), 1)
    raise SystemExit(code or 0)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(f"error: {message}".split())
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
