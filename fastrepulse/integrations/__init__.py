"""The repulsion inside other people's pipelines and loops."""

from fastrepulse.integrations.callback import RepulsionCallback
from fastrepulse.integrations.functional import (
    corrected_denoised,
    corrected_epsilon,
    repulsive_force,
)
from fastrepulse.integrations.scheduler import RepulsiveScheduler

__all__ = [
    "RepulsionCallback",
    "RepulsiveScheduler",
    "corrected_denoised",
    "corrected_epsilon",
    "repulsive_force",
]
