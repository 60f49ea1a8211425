"""A method again, from what its `settings()` said."""

from collections.abc import Callable, Mapping
from typing import Any

from fastrepulse import methods
from fastrepulse.checks import window_of
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion


def method_from_settings(settings: Mapping[str, Any]) -> Method:
    """Returns the method that says these settings; its bank, if it has one, is empty.

    Raises:
        ValueError: If the settings only describe a part of it, such as a function or a tensor.
    """
    kinds: dict[str, Callable[..., Method]] = {
        name: getattr(methods, name) for name in methods.__all__
    }
    try:
        arguments: dict[str, Any] = {
            name: window_of(value) if isinstance(value, list) else value
            for name, value in settings.items()
            if name != "method"
        }
        kind = kinds[settings["method"]] if "method" in settings else Repulsion
        if arguments.get("bank") is not None:
            arguments["bank"] = Bank()
        return kind(**arguments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"these settings do not make a method: {error}") from None
