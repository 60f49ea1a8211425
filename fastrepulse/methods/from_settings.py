"""A method from what its `settings()` returned."""

from collections.abc import Mapping
from typing import Any

from fastrepulse import methods
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion


def method_from_settings(settings: Mapping[str, Any]) -> Method:
    """Returns the method that has these settings; if it has a bank, the bank is empty.

    Raises:
        ValueError: If the settings do not describe the whole method, for instance because one of
            them is a function or a tensor.
    """
    kinds = {name: getattr(methods, name) for name in methods.__all__} | {"Repulsion": Repulsion}
    try:
        arguments = {name: value for name, value in settings.items() if name != "method"}
        if arguments.get("bank") is not None:
            arguments["bank"] = Bank()
        return kinds[settings.get("method", "Repulsion")](**arguments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"these settings do not make a method: {error}") from None
