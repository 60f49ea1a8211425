"""How different a set of pictures is, and how good."""

from fastrepulse.metrics.diversity import vendi_score
from fastrepulse.metrics.quality import frechet_distance

__all__ = ["frechet_distance", "vendi_score"]
