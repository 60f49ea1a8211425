"""Imports of bench/ and training/, which are not installed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def import_from_checkout(name: str) -> ModuleType:
    """Imports a module of bench/ or training/.

    The checkout is on the path only meanwhile: its `triton_kernels` must stay unimportable under
    the bare name.
    """
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT))
