"""What all commands share."""

import typer
from rich.console import Console

app = typer.Typer(
    help="The images of one prompt, different from each other.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
