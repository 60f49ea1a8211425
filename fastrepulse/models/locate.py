"""Where a model lies that is named: a folder, a file, or the hub."""

import re
from pathlib import Path

from fastrepulse.models.folder import check_folder

DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "default_model" / "weights"
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""How the name of a file with weights ends."""


def locate_model(model: str | Path | None) -> str:
    """Returns the path of a local folder, which is checked, or of a file, or the hub id.

    Raises:
        ValueError: If a folder holds no such model, or a file is pickled.
        TypeError: If it is neither a path nor a name.
        FileNotFoundError: If there is nothing there, and it cannot be a hub id.
    """
    if model is None:
        model = DEFAULT_MODEL
    if not isinstance(model, (str, Path)):
        raise TypeError(
            "model must be None, a folder, a safetensors file, a hub id, a StableDiffusionPipeline "
            f"or what load_model returned, got {model!r}"
        )
    path = Path(model).expanduser()
    if path.is_dir():
        check_folder(path)
        return str(path.resolve())
    if path.suffix in FILES or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"model must exist, got {str(model)!r}: no such file")
        if path.suffix != ".safetensors":
            raise ValueError(
                f"model must be a safetensors file, got {str(model)!r}: pickled weights are never "
                "loaded"
            )
        return str(path.resolve())
    hub_id = isinstance(model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model)
    if hub_id and not path.parent.is_dir():
        return str(model)
    raise FileNotFoundError(
        f"model must be a folder in diffusers' layout or a hub id 'owner/name', got {str(model)!r}"
        + (f": {str(path.parent)!r} is a folder and has no {path.name!r}" if hub_id else "")
    )
