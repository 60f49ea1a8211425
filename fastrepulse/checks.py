"""What arguments and values are checked for, with the message that names what is wrong."""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

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
    """Raises unless an argument is one of a few names."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless an argument is an int of at least some number."""
    if isinstance(value, bool) or not isinstance(value, int):
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
        raise ValueError(f"{name} must be a path that the system can have, got {str(value)!r}")


def check_texts(name: str, value: Any) -> None:
    """Raises unless an argument is a text, or a list of at least one, that can be encoded."""
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


def check_window(name: str, window: tuple[float, float]) -> None:
    """Raises unless a window is two noise levels, the higher one first."""
    numbers = isinstance(window, (tuple, list)) and all(isinstance(x, Real) for x in window)
    if not numbers:
        raise TypeError(f"{name} must be two noise levels (from, to), got {window!r}")
    if len(window) != 2 or not window[0] > window[1] >= 0:
        raise ValueError(
            f"{name} must be two noise levels (from, to) with from > to >= 0, got {window}"
        )


def in_window(sigma: float, window: tuple[float, float]) -> bool:
    """Says whether a noise level is in a window (from, to), its ends included."""
    return window[0] >= sigma >= window[1]


def plain_window(window: tuple[float, float]) -> list[float | None]:
    """Returns a window as JSON can hold it, which knows no infinity."""
    return [None if math.isinf(level) else float(level) for level in window]


def window_of(plain: Sequence[float | None]) -> tuple[float, float]:
    """Returns the window that `plain_window` made plain."""
    first, last = (math.inf if level is None else level for level in plain)
    return first, last


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings as they come back from `sample.json`: numbers of any kind are plain ones.

    Raises:
        TypeError: If a method's `settings()` hold what JSON cannot.
    """

    def number(value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"settings must be what JSON can hold, got {value!r}") from None

    return json.loads(json.dumps(settings, default=number))


class Watch:
    """What a step works out on a device and the host has to know, read in one go.

    Reading it number by number would make the host wait for the device as often.

    Args:
        step: The number of the step, for the messages.
    """

    def __init__(self, step: int):
        self.step = step
        self._seen: list[tuple[str, Sequence[int] | None, Tensor]] = []

    def finite(self, values: Tensor, what: str, particles: Sequence[int] | None = None) -> None:
        """Notes whether values are finite.

        Args:
            values: One row a particle, [N, ...].
            what: What the values are, for the message.
            particles: The number of each row's particle; by default from 0 on.
        """
        # What is subtracted from itself is zero unless it is NaN or infinite
        rests = (values - values).flatten(1).sum(dim=1)
        self._seen.append((what, particles, rests))

    def read(self, *numbers: Tensor) -> list[float]:
        """Returns the numbers in tensors of any shapes.

        Raises:
            FloatingPointError: If values were NaN or infinite; names the first of them, the step
                and the first such particle.
        """
        verdicts = [rests.sum().float().reshape(1) for _, _, rests in self._seen]
        there = [*verdicts, *(each.detach().float().flatten() for each in numbers)]
        if not there:
            return []
        device = there[0].device
        read = torch.cat([each.to(device) for each in there]).tolist()
        for verdict, (what, particles, rests) in zip(read, self._seen, strict=False):
            if verdict != 0:
                bad = (rests != 0).nonzero().flatten().tolist()
                first = bad[0] if particles is None else particles[bad[0]]
                raise FloatingPointError(
                    f"{what} is not finite at step {self.step}, particle {first} "
                    f"({len(bad)} in all)"
                )
        return read[len(verdicts) :]
