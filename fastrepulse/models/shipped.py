"""The models that the package ships, by name."""

from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]


class Recommended(NamedTuple):
    """The number of steps and the guidance scale that a model was made for."""

    num_inference_steps: int = 25
    guidance_scale: float = 5.0


SHIPPED = {
    "small": PACKAGE / "default_model" / "weights",
    "turbo": PACKAGE / "shipped_models" / "turbo",
}
"""The folder of each shipped model."""

DEFAULT_MODEL = SHIPPED["small"]

RECOMMENDED = {"turbo": Recommended(num_inference_steps=4, guidance_scale=1.0)}
"""What a shipped model was made for, if it is not the default."""


def shipped_name(model: Any) -> str | None:
    """Returns the name of a shipped model, or None for any other model.

    Args:
        model: What `load_model` takes, or a loaded `Model`.
    """
    if model is None:
        return "small"
    named = model if isinstance(model, (str, Path)) else getattr(model, "name", None)
    found = (name for name, folder in SHIPPED.items() if str(named) in (name, str(folder)))
    return next(found, None)


def recommended(model: Any) -> Recommended:
    """Returns the number of steps and the guidance scale for a model."""
    return RECOMMENDED.get(shipped_name(model) or "", Recommended())
