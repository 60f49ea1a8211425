"""`fastrepulse ui`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fastrepulse import models
from fastrepulse.cli.app import app, console
from fastrepulse.cli.drawing import Device, ModelName
from fastrepulse.sampling.output import check_writable


@app.command()
def ui(
    model: ModelName = None,
    prompt: Annotated[str, typer.Option(help="First prompt of the page.")] = "a robot",
    out: Annotated[Path, typer.Option(help="Folder of the images.")] = Path("explored"),
    port: Annotated[
        int | None, typer.Option(help="Port; default: the first free one from 7860.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    device: Device = None,
) -> None:
    """Opens a page to draw, compare and choose images; it listens on this machine only."""
    if find_spec("gradio") is None:
        raise ValueError("fastrepulse ui needs Gradio: pip install 'fastrepulse[ui]'")
    check_writable(out)
    from fastrepulse.ui import launch

    console.print("loading the model and the page ...")
    launch(models.load_model(model, device), model, out, prompt, port, browser)
