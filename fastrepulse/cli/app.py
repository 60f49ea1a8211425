"""What all commands share."""

import io
import os
import sys

import typer
from rich.console import Console

app = typer.Typer(
    help="The images of one prompt, different from each other.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
LEAST_WIDTH = 80
"""Tables are at least as wide as this: a narrow terminal wraps their lines and cuts off nothing."""


def fit_terminal() -> None:
    """Fits the output to the terminal: its width, and the characters that it can show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A question mark for any other character
            stream.reconfigure(errors="replace")
    console.width = max(LEAST_WIDTH, Console().width)
    # For the help texts
    os.environ["COLUMNS"] = str(console.width)
