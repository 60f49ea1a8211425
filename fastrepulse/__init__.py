"""fastrepulse: the images of one prompt, different from each other."""

from fastrepulse.bank import Bank
from fastrepulse.corrections import Correction
from fastrepulse.models import Model, load_model
from fastrepulse.repulsion import Repulsion
from fastrepulse.results import SampleResult, StepDiagnostics
from fastrepulse.sampling import sample

__version__ = "0.1.0"
__all__ = [
    "Bank",
    "Correction",
    "Model",
    "Repulsion",
    "SampleResult",
    "StepDiagnostics",
    "load_model",
    "sample",
]
