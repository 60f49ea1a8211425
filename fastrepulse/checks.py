"""Checks of arguments and values; each error names the argument and the value."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


def check_number(name: str, value: Any) -> None:
    """Raises unless an argument is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not _is_finite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def check_positive(name: str, value: Any, besides: str = "") -> None:
    """Raises unless an argument is a finite number above 0; `besides` says what else it may be."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {besides}a positive number, got {value!r}")
    if not (_is_finite(value) and float(value) > 0):
        raise ValueError(f"{name} must be {besides}a positive number, got {value}")


def check_choice(name: str, value: Any, accepted: Iterable[str]) -> None:
    """Raises unless an argument is one of the accepted names."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless an argument is an integer of at least `least`."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_path(name: str, value: Any) -> None:
    """Raises unless an argument can be the path of a file or a folder."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a path, got {value!r}")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"{name} must be a valid path, got {str(value)!r}")


def check_texts(name: str, value: Any) -> None:
    """Raises unless an argument is a string or a non-empty list of strings, valid as UTF-8."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a string or a list of strings, got {value!r}")
    if not texts:
        raise ValueError(f"{name} must be a string or a list of at least one, got an empty list")
    for text in texts:
        if re.search("[\0\ud800-\udfff]", text):
            raise ValueError(
                f"{name} must be text without NUL characters and lone surrogates, got {text!r}"
            )


class Window(NamedTuple):
    """An interval of noise levels, both ends included: `sigma in Window(9.0, 4.0)`.

    Attributes:
        high: The higher noise level; may be infinite.
        low: The lower noise level, at least 0.
    """

    high: float
    low: float

    def __contains__(self, sigma: object) -> bool:
        return isinstance(sigma, Real) and self.high >= float(sigma) >= self.low

    @classmethod
    def of(cls, name: str, value: Any, besides: str = "") -> "Window":
        """Returns a window from a pair (high, low), or from what `plain` returned.

        `besides` says what else the argument may be.

        Raises:
            TypeError: If the value is not two numbers; names the argument.
            ValueError: If high > low >= 0 does not hold.
        """
        if isinstance(value, Mapping) and set(value) == {"high", "low"}:
            levels = value["high"], value["low"]
            value = [math.inf if level is None else level for level in levels]
        if not isinstance(value, (tuple, list)) or not all(isinstance(x, Real) for x in value):
            raise TypeError(f"{name} must be {besides}two noise levels (high, low), got {value!r}")
        if len(value) != 2 or not value[0] > value[1] >= 0:
            raise ValueError(
                f"{name} must be {besides}two noise levels (high, low) with high > low >= 0, "
                f"got {value}"
            )
        return cls(*value)

    def scaled(self, factor: float) -> "Window":
        """Returns the window with both noise levels multiplied by a factor."""
        return Window(self.high * factor, self.low * factor)

    def plain(self) -> dict[str, float | None]:
        """Returns a form that JSON can store; None stands for infinity."""
        levels = self._asdict().items()
        return {name: None if math.isinf(level) else float(level) for name, level in levels}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings as they come back from `sample.json`: NumPy numbers become Python's.

    Raises:
        TypeError: If a value cannot be stored in JSON.
    """

    def number(value: Any) -> float:
        try:
            return int(value) if is_integer(value) else float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"settings must be what JSON can hold, got {value!r}") from None

    return json.loads(json.dumps(settings, default=number))


class FiniteCheck:
    """Collects the values of a step that must be finite, and reads them from the device at once.

    One read per step keeps the host from waiting for the device at every check.

    Args:
        step: Number of the step, for the messages.
    """

    def __init__(self, step: int):
        self.step = step
        self._added: list[tuple[str, Sequence[int] | None, Tensor]] = []

    def add(self, values: Tensor, what: str, particles: Sequence[int] | None = None) -> None:
        """Adds values that must be finite.

        Args:
            values: One row per particle, [N, ...].
            what: Name of the values, for the message.
            particles: Index of each row's particle; by default 0, 1, ...
        """
        # x - x is zero unless x is NaN or infinite
        residues = (values - values).flatten(1).sum(dim=1)
        self._added.append((what, particles, residues))

    def read(self, *numbers: Tensor) -> list[float]:
        """Returns the elements of tensors of any shape as one list, after the check.

        Raises:
            FloatingPointError: If added values were NaN or infinite; names the first such values,
                the step and the first such particle.
        """
        verdicts = [residues.sum().float().reshape(1) for _, _, residues in self._added]
        tensors = [*verdicts, *(each.detach().float().flatten() for each in numbers)]
        if not tensors:
            return []
        device = tensors[0].device
        values = torch.cat([each.to(device) for each in tensors]).tolist()
        for verdict, (what, particles, residues) in zip(values, self._added, strict=False):
            if verdict != 0:
                bad = (residues != 0).nonzero().flatten().tolist()
                first = bad[0] if particles is None else particles[bad[0]]
                raise FloatingPointError(
                    f"{what} is not finite at step {self.step}, particle {first} "
                    f"({len(bad)} particles in all)"
                )
        return values[len(verdicts) :]
