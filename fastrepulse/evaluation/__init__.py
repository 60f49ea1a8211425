"""All methods compared on the shipped model: `fastrepulse evaluate`, by the extra `evaluate`."""

from fastrepulse.evaluation.comparison import evaluate
from fastrepulse.evaluation.settings import QUICK, SETTINGS, Setting, select

__all__ = ["QUICK", "SETTINGS", "Setting", "evaluate", "select"]
