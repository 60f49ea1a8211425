"""Tensors and a record in one safetensors file, which is read whole and unchanged or refused."""

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_record(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors with a record of plain values; a file that was there is replaced at once.

    Raises:
        OSError: If it cannot be written; what was there is still there.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = json.dumps(record)
    about = {"record": text, "checksum": str(_checksum(tensors, text))}
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: what safetensors leaves beside the file when it is killed goes with it
    with tempfile.TemporaryDirectory(
        prefix=f"{path.name}.", suffix=".partial", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder, path.name)
        try:
            save_file(tensors, partial, about)
        except SafetensorError as error:
            raise OSError(f"{str(path)!r} cannot be written: {error}") from None
        _to_disk(partial)
        os.replace(partial, path)
    _to_disk(path.parent)


def load_record(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the record that `save_record` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not one of these, or not as it was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text, checksum = about["record"], about["checksum"]
        if checksum != str(_checksum(tensors, text)):
            raise ValueError("its checksum is of something else")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"file {str(path)!r} cannot be used: {why}") from None


def _to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would outlast a loss of power."""
    if os.name == "nt":
        return  # which lets nobody open a folder
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        total = zlib.crc32(about.encode(), total)
        total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, total)
    return total
