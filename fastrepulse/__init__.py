"""fastrepulse: the images of one prompt, different from each other."""

from fastrepulse.integrations.repel import repel
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models import Model, load_model
from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.results import SampleResult, StepDiagnostics, StepEnd
from fastrepulse.sampling.resume import resume
from fastrepulse.sampling.sample import sample
from fastrepulse.version import __version__

__all__ = [
    "Bank",
    "Correction",
    "Model",
    "Repulsion",
    "SampleResult",
    "StepDiagnostics",
    "StepEnd",
    "__version__",
    "load_model",
    "repel",
    "resume",
    "sample",
]
