"""`fastrepulse demo`, `evaluate` and `info`."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import fastrepulse
from fastrepulse import embeddings, models
from fastrepulse.cli.app import app, console
from fastrepulse.default_model.figures import Figures
from fastrepulse.kernels import dispatch
from fastrepulse.sampling.output import check_writable

ShippedName = Annotated[str, typer.Option(help=f"Shipped model: {', '.join(models.SHIPPED)}.")]


@app.command()
def demo(
    prompt: Annotated[str, typer.Option(help="One of the shipped model's prompts.")] = "a robot",
    num_particles: Annotated[
        int, typer.Option("-n", "--num-particles", help="Number of images.")
    ] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the images.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    model: ShippedName = "small",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of both; default: the model's own.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Length of the push.")
    ] = fastrepulse.Repulsion().strength,
) -> None:
    """Samples one prompt independently and repelled, and measures both."""
    from fastrepulse import demo as main_job

    check_writable(out)
    comparison = main_job.compare(prompt, num_particles, seed, guidance_scale, strength, model)
    path = main_job.save(comparison, out)
    console.print(_compared(prompt, *comparison.figures))
    console.print(f"The images, side by side: {escape(str(path))}", soft_wrap=True)


def _compared(prompt: str, independent: Figures, repelled: Figures) -> Table:
    """Returns a table of both figures, and which is better."""
    rows = (
        ("different images (attribute Vendi)", "attribute_vendi", ".2f", 1),
        ("attribute values that appear", "coverage", ".0%", 1),
        ("most common value", "most_common", ".0%", -1),
        ("images of the subject", "accuracy", ".0%", 1),
        ("distance off data (1: rendered)", "off_data", ".2f", -1),
    )
    table = Table("", "independent", "repelled", "", title=prompt)
    for title, name, form, better in rows:
        before, after = getattr(independent, name), getattr(repelled, name)
        change = better * (after - before)
        same = f"{before:{form}}" == f"{after:{form}}"
        verdict = "=" if same else "[green]better" if change > 0 else "[yellow]worse"
        table.add_row(title, f"{before:{form}}", f"{after:{form}}", verdict)
    return table


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the runs, tables, plots and the report.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Few settings and one seed, in five minutes.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds; default: 10, or 1 with --quick.")
    ] = None,
    num_particles: Annotated[
        int, typer.Option("-n", "--num-particles", help="Images per prompt.")
    ] = 16,
    model: ShippedName = "small",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of every run; default: the model's own.")
    ] = None,
    cleanliness: Annotated[
        float, typer.Option(help="Largest distance off data, relative to that of full captions.")
    ] = 1.05,
    methods: Annotated[
        str | None, typer.Option(help="Methods, separated by commas; default: all.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="File of rendered pictures; default: the shipped one.")
    ] = None,
) -> None:
    """Compares repulsion with other methods on the shipped model; a stopped run continues."""
    from fastrepulse import evaluation

    compared = evaluation.QUICK if quick else evaluation.ALL
    if methods is not None:
        compared = evaluation.select(compared, [name.strip() for name in methods.split(",")])
    evaluation.evaluate(
        out,
        compared,
        num_seeds=seeds if seeds is not None else 1 if quick else 10,
        num_particles=num_particles,
        model=model,
        guidance_scale=guidance_scale,
        rule=evaluation.Rule(cleanliness=cleanliness),
        calibration_seeds=(1000,) if quick else (1000, 1001),
        data=data,
        compile=not quick,
    )
    console.print(f"The report: {escape(str(out / 'report.html'))}", soft_wrap=True)


@app.command()
def info() -> None:
    """Shows installed versions, devices and kernels."""
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
    table.add_row("shipped models", "\n".join(str(path) for path in models.SHIPPED.values()))
    console.print(table)
