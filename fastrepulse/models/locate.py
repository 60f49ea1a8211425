"""Resolves a model name to a folder, a file or a hub id."""

import re
from pathlib import Path

from fastrepulse.models.folder import check_folder
from fastrepulse.models.shipped import DEFAULT_MODEL, SHIPPED

FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files with weights."""


def locate_model(model: str | Path | None) -> str:
    """Returns the absolute path of a checked folder or a file, or the hub id.

    The name of a shipped model comes before a folder of that name; "./turbo" is a folder.

    Raises:
        ValueError: If a folder holds no supported model, or a file is pickled.
        TypeError: If `model` is neither a path nor a name.
        FileNotFoundError: If the path does not exist and is no hub id.
    """
    if model is None:
        model = DEFAULT_MODEL
    if isinstance(model, str) and model in SHIPPED:
        model = SHIPPED[model]
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"model must be None, {', '.join(SHIPPED)}, a folder, a safetensors file, a hub id, "
            f"a StableDiffusionPipeline or what load_model returned, got {model!r}"
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
        f"model must be {', '.join(SHIPPED)}, a folder in diffusers' layout or a hub id "
        f"'owner/name', got {str(model)!r}"
        + (f": {str(path.parent)!r} is a folder and has no {path.name!r}" if hub_id else "")
    )
