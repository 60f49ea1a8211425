"""Where models come from: the shipped one, a folder, one file, a hub id, or a pipeline."""

from fastrepulse.models.load import load_model
from fastrepulse.models.locate import DEFAULT_MODEL, locate_model
from fastrepulse.models.model import SCHEDULERS, Model
from fastrepulse.models.pictures import encode_folder

__all__ = ["DEFAULT_MODEL", "SCHEDULERS", "Model", "encode_folder", "load_model", "locate_model"]
