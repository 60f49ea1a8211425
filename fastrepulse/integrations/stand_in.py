"""An object that stands in for a part of a pipeline during one call."""

from typing import Any


class StandIn:
    """Has the class and the attributes of a part, and whatever a subclass does differently.

    Pipelines ask for the class and the signatures of their parts.

    Args:
        part: The scheduler or the model of a pipeline.
    """

    def __init__(self, part: Any):
        self._part = part

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)
