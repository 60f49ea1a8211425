"""Other published ways to make particles differ, under the same loop: `sample(repulsion=CADS())`.

Interval guidance (Kynkäänniemi et al. 2024, arXiv:2404.07724) needs no class: it is `sample`'s
`guidance_window`.
"""

from fastrepulse.methods.cads import CADS
from fastrepulse.methods.mean_score import MeanScore
from fastrepulse.methods.particle_guidance import ParticleGuidance
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
    "MeanScore",
    "ParticleGuidance",
    "TextNoise",
    "VendiGuidance",
]
