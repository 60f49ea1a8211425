"""Loads models: the shipped one, a folder, a single file, a hub id, or a loaded pipeline."""

from fastrepulse.models.image_files import encode_folder
from fastrepulse.models.load import load_model
from fastrepulse.models.locate import locate_model
from fastrepulse.models.model import SCHEDULERS, Model
from fastrepulse.models.shipped import DEFAULT_MODEL, SHIPPED

__all__ = [
    "DEFAULT_MODEL",
    "SCHEDULERS",
    "SHIPPED",
    "Model",
    "encode_folder",
    "load_model",
    "locate_model",
]
