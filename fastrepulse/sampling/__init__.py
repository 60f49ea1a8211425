"""The sampler: a prompt in, N different images out."""

from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.results import SampleResult, StepDiagnostics, StepEnd
from fastrepulse.sampling.sample import sample

__all__ = [
    "Correction",
    "SampleResult",
    "StepDiagnostics",
    "StepEnd",
    "sample",
]
