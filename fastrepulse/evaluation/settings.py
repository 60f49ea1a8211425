"""What is compared: every method at a few strengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrepulse.methods import (
    CADS,
    SPARKE,
    SPELL,
    SVGD,
    MeanScore,
    ParticleGuidance,
    VendiGuidance,
)
from fastrepulse.methods.base import Method
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.sampling.corrections import Correction


@dataclass(frozen=True)
class Setting:
    """One method at one strength.

    Args:
        method: The method's name in tables and plots.
        strength: What varies within the method, as tables say it; empty for a method without.
        arguments: What `fastrepulse.sample` is given beside prompts, N and seed.
    """

    method: str
    strength: str
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"repulsion": None})

    @property
    def title(self) -> str:
        return f"{self.method}, {self.strength}" if self.strength else self.method

    def key(self) -> dict[str, Any]:
        """Returns all that the pictures depend on beside prompts, N and seed, for JSON."""

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(each) for each in value]
            return value.settings() if isinstance(value, (Method, Correction)) else value

        arguments = {name: plain(value) for name, value in self.arguments.items()}
        return {"method": self.method, "strength": self.strength, "arguments": arguments}


def strengths(
    method: str, make: Callable[[float], Method], values: Sequence[float]
) -> list[Setting]:
    """Returns a method at several strengths, from weak to strong."""
    return [Setting(method, f"{value:g}", {"repulsion": make(value)}) for value in values]


INDEPENDENT = Setting("independent", "")
FULL_CAPTIONS = Setting("full captions", "")
"""The set of maximum diversity: independent samples of captions that name every attribute."""

DEFAULT = Setting("repulsion", f"{Repulsion().strength:g}", {"repulsion": Repulsion()})

SETTINGS = [
    INDEPENDENT,
    *strengths("repulsion", lambda s: Repulsion(strength=s), (0.8, 1.2, 1.6, 2)),
    *strengths("Particle Guidance", ParticleGuidance, (100, 200, 300)),
    *strengths("SVGD", SVGD, (1, 300)),
    *strengths("mean score", MeanScore, (0.3,)),
    *strengths("SPELL", SPELL, (0.7, 1, 1.3)),
    *strengths("SPARKE", SPARKE, (300, 1000)),
    *strengths("Vendi guidance", VendiGuidance, (1000, 3000)),
    *strengths("CADS", CADS, (0.1, 0.25, 0.5)),
    *(
        Setting("interval guidance", f"{level:g} to 0", {"guidance_window": (level, 0.0)})
        for level in (6.0, 3.0)
    ),
    *(
        Setting("Langevin", f"{steps} a level", {"repulsion": None, "corrections": [correction]})
        for steps in (1, 2)
        for correction in [Correction(steps=steps, step_size=0.1, window=(8.0, 1.0))]
    ),
]
"""All that is compared; a method's settings stand together, from weak to strong.

Strengths reach from where a method does little on the shipped model to where it costs accuracy or
its Vendi score stops growing. The defaults of the other methods are those of their papers, for
larger latents, and some do next to nothing here.
"""

QUICK = [
    setting
    for setting in SETTINGS
    if setting.title
    in (
        INDEPENDENT.title,
        DEFAULT.title,
        "repulsion, 2",
        "Particle Guidance, 300",
        "CADS, 0.25",
        "interval guidance, 3 to 0",
    )
]
"""What `--quick` compares."""


def select(settings: Sequence[Setting], methods: Sequence[str]) -> list[Setting]:
    """Returns the settings of the methods named, and independent sampling, which all is held to.

    Raises:
        ValueError: If there is no method of a name.
    """
    known = {setting.method.lower(): setting.method for setting in settings}
    for name in methods:
        if name.lower() not in known:
            raise ValueError(f"methods must be of {', '.join(known.values())}; got {name!r}")
    wanted = {INDEPENDENT.method, *(known[name.lower()] for name in methods)}
    return [setting for setting in settings if setting.method in wanted]
