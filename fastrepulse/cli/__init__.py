"""The command line: `fastrepulse sample`, `resume`, `ui`, `demo`, `evaluate`, `info`."""

import os
import sys
from typing import NoReturn

import typer
from rich.console import Console

from fastrepulse.cli import drawing, exploring, measuring
from fastrepulse.cli.app import app, fit_terminal

__all__ = ["app", "drawing", "exploring", "main", "measuring"]


def main() -> None:
    """Runs the command line; an error prints one line and sets the exit code."""
    fit_terminal()
    # Huge pages for large tensors: page faults take a fifth of the time on a CPU
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
