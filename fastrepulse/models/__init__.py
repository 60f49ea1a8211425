"""Where models come from: the shipped one, a local folder, a hub id, or a pipeline's own parts."""

from fastrepulse.models.load import DEFAULT_MODEL, load_model, locate_model
from fastrepulse.models.model import SCHEDULERS, Model
from fastrepulse.models.pictures import encode_folder

__all__ = ["DEFAULT_MODEL", "SCHEDULERS", "Model", "encode_folder", "load_model", "locate_model"]
