"""Writes docs/command-line.md, the reference of `fastrepulse`, from the commands themselves.

python docs/command_line.py
"""

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, ParameterInfo

from fastrepulse.cli import app

PAGE = Path(__file__).with_name("command-line.md")
INTRODUCTION = """# Command-line reference

`fastrepulse COMMAND --help` prints the same text. Where `fastrepulse` is not on the path,
`python -m fastrepulse` does the same. Bad input costs one line and exit code 2. An error during a
run costs exit code 1, and Ctrl-C exit code 130.

`make docs` writes this page from the commands themselves; do not edit it by hand.
"""
KINDS = {int: "whole number", float: "number", Path: "path", str: "text"}


def reference() -> str:
    """Returns the page as Markdown."""
    sections = []
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        sections.append(_section(name, command.callback))
    return INTRODUCTION + "".join(sections)


def _section(command: str, function: Callable[..., Any]) -> str:
    hints = get_type_hints(function, include_extras=True)
    arguments, rows = [], []
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is typer.Context:
            continue
        kind, info = get_args(hints[name])
        if isinstance(info, ArgumentInfo):
            arguments.append(name.upper())
        flags = ", ".join(f"`{flag}`" for flag in _flags(name, kind, info))
        default = _default(parameter.default, kind)
        rows.append(f"| {flags} | {_value(kind)} | {default} | {info.help or ''} |")
    usage = " ".join(["$ fastrepulse", command, *arguments, *(["[OPTIONS]"] if rows else [])])
    lines = [f"\n## {command}\n", f"{inspect.getdoc(function)}\n", "```console", usage, "```"]
    if rows:
        lines += ["\n| option | value | default | what it does |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _flags(name: str, kind: Any, info: ParameterInfo) -> list[str]:
    if isinstance(info, ArgumentInfo):
        return [name.upper()]
    # In an annotation, typer takes the first flag for its `default`
    given = [flag for flag in (info.default, *(info.param_decls or ())) if _is_flag(flag)]
    option = name.replace("_", "-")
    return given or [f"--{option}", *([f"--no-{option}"] if kind is bool else [])]


def _is_flag(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("-")


def _value(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if kind is bool:
        return "flag"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{each}`" for each in get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers"
    return KINDS[kind]


def _default(default: Any, kind: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if default in (None, ""):
        return ""
    if kind is bool:
        return "on" if default else "off"
    return f"`{' '.join(map(str, default)) if isinstance(default, tuple) else default}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
