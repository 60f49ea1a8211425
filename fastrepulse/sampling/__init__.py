"""The sampler: a prompt in, N pictures that differ out."""

from fastrepulse.sampling.corrections import Correction
from fastrepulse.sampling.results import SampleResult, StepDiagnostics, StepEnd
from fastrepulse.sampling.sample import DEFAULT_REPULSION, sample

__all__ = [
    "DEFAULT_REPULSION",
    "Correction",
    "SampleResult",
    "StepDiagnostics",
    "StepEnd",
    "sample",
]
