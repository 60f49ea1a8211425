"""Other published methods to make particles differ: `sample(repulsion=CADS())`."""

from fastrepulse.methods.cads import CADS
from fastrepulse.methods.interval_guidance import IntervalGuidance
from fastrepulse.methods.mean_score import MeanScore
from fastrepulse.methods.particle_guidance import ParticleGuidance
from fastrepulse.methods.random_push import RandomPush
from fastrepulse.methods.sparke import SPARKE
from fastrepulse.methods.spell import SPELL
from fastrepulse.methods.svgd import SVGD
from fastrepulse.methods.text_noise import TextNoise
from fastrepulse.methods.vendi_guidance import VendiGuidance

__all__ = [
    "CADS",
    "SPARKE",
    "SPELL",
    "SVGD",
    "IntervalGuidance",
    "MeanScore",
    "ParticleGuidance",
    "RandomPush",
    "TextNoise",
    "VendiGuidance",
]
