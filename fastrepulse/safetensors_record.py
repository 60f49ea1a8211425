"""Saves tensors and JSON values in one safetensors file with a checksum."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastrepulse.files import to_disk, whole_file


def save_record(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors and a record of JSON values, replacing an existing file atomically.

    Raises:
        OSError: If writing fails; an existing file stays as it was.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = json.dumps(record)
    metadata = {"record": text, "checksum": str(_checksum(tensors, text))}
    with whole_file(path) as partial:
        try:
            save_file(tensors, partial, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        to_disk(partial)
    to_disk(path.parent)


def load_record(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors and the record that `save_record` wrote.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file has another format or was changed since it was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text, checksum = metadata["record"], metadata["checksum"]
        if checksum != str(_checksum(tensors, text)):
            raise ValueError("its content does not match its checksum")
        return tensors, json.loads(text)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"file {str(path)!r} cannot be used: {reason}") from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, total)
    return total
