"""Lists every public name with its arguments.

python tests/helpers/public_names.py > tests/data/public_names.txt
"""

import inspect
import types
from importlib import import_module
from pathlib import Path

PUBLIC = Path(__file__).resolve().parents[1] / "data" / "public_names.txt"
ROOMS = (
    "fastrepulse",
    "fastrepulse.embeddings",
    "fastrepulse.evaluation",
    "fastrepulse.integrations",
    "fastrepulse.kernels",
    "fastrepulse.methods",
    "fastrepulse.metrics",
    "fastrepulse.models",
    "fastrepulse.ui",
)


def arguments_of(function):
    """Returns the arguments as they are written, without types: versions of Python differ there."""
    parts, starred = [], False
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is argument.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred |= argument.kind in (argument.KEYWORD_ONLY, argument.VAR_POSITIONAL)
        stars = {argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(argument.kind, "")
        default = argument.default
        plain = isinstance(default, (str, int, float, bool, tuple, types.NoneType))
        value = "" if default is argument.empty else f"={default!r}" if plain else "=..."
        parts.append(f"{stars}{argument.name}{value}")
    return f"({', '.join(parts)})"


def members_of(kind):
    """Yields the public methods and properties that a class or its bases here define."""
    for name in sorted(dir(kind)):
        defined = [base for base in kind.__mro__ if name in vars(base)]
        if name.startswith("_") or not defined[0].__module__.startswith("fastrepulse"):
            continue
        value = getattr(kind, name)
        if callable(value):
            yield f".{name}{arguments_of(value)}"
        elif isinstance(value, property):
            yield f".{name}"


def public_names():
    """Yields a line for each public name."""
    for room in map(import_module, ROOMS):
        for name in room.__all__:
            value, title = getattr(room, name), f"{room.__name__}.{name}"
            is_class = isinstance(value, type)
            called = isinstance(value, types.FunctionType) or (
                is_class and not issubclass(value, Warning)
            )
            yield title + (arguments_of(value) if called else "")
            if is_class:
                yield from (title + member for member in members_of(value))


if __name__ == "__main__":
    print("\n".join(public_names()))
