"""What is compared: every method, each at a strength that the evaluation chooses."""

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
    TextNoise,
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


@dataclass(frozen=True)
class Family:
    """One method with a strength that the evaluation chooses (`search`).

    Args:
        method: The method's name in tables and plots.
        arguments: From a strength to what `fastrepulse.sample` is given; more is stronger.
        low: Where the search begins: the method does little there.
        high: Where it ends.
    """

    method: str
    arguments: Callable[[float], Mapping[str, Any]]
    low: float
    high: float

    def at(self, strength: float) -> Setting:
        """Returns the method at one strength."""
        return Setting(self.method, f"{strength:.3g}", self.arguments(strength))


def method_family(method: str, make: Callable[[float], Method], low: float, high: float) -> Family:
    """Returns the family of a method whose strength is its first argument."""
    return Family(method, lambda strength: {"repulsion": make(strength)}, low, high)


def langevin(step_size: float) -> Mapping[str, Any]:
    """Returns a Langevin step at every noise level from 8 to 1, of a size in units of sigma^2."""
    correction = Correction(step_size=float(f"{step_size:.3g}"), window=(8.0, 1.0))
    return {"repulsion": None, "corrections": [correction]}


def interval_guidance(strength: float) -> Mapping[str, Any]:
    """Returns guidance from the noise level 15 / strength downwards alone."""
    return {"repulsion": None, "guidance_window": (float(f"{15 / strength:.3g}"), 0.0)}


INDEPENDENT = Setting("independent", "")
FULL_CAPTIONS = Setting("full captions", "")
"""The set of maximum diversity: independent samples of captions that name every attribute."""

DEFAULT = Setting("default", f"{Repulsion().strength:g}", {"repulsion": Repulsion()})

OURS = ("default", "repulsion")
"""The names of what this package adds."""

FAMILIES = [
    method_family("repulsion", lambda s: Repulsion(strength=s), 0.05, 3),
    method_family("Particle Guidance", ParticleGuidance, 3, 1000),
    method_family("SVGD", SVGD, 0.1, 1000),
    method_family("mean score", MeanScore, 0.02, 1),
    method_family("SPELL", SPELL, 0.1, 2),
    method_family("SPARKE", SPARKE, 10, 10_000),
    method_family("Vendi guidance", VendiGuidance, 30, 30_000),
    method_family("CADS", CADS, 0.02, 1),
    method_family("text noise", TextNoise, 0.1, 10),
    Family("interval guidance", interval_guidance, 1, 15),
    Family("Langevin", langevin, 0.01, 1),
]
"""All methods, each compared at its own best strength."""

ALL: list[Setting | Family] = [DEFAULT, *FAMILIES]

QUICK: list[Setting | Family] = [
    DEFAULT,
    *(f for f in FAMILIES if f.method in ("Particle Guidance", "CADS", "interval guidance")),
]
"""What `--quick` compares."""


def select(compared: Sequence[Setting | Family], methods: Sequence[str]) -> list[Setting | Family]:
    """Returns what is compared of the methods named.

    Raises:
        ValueError: If there is no method of a name.
    """
    known = {each.method.lower(): each.method for each in compared}
    for name in methods:
        if name.lower() not in known:
            raise ValueError(f"methods must be of {', '.join(known.values())}; got {name!r}")
    wanted = {known[name.lower()] for name in methods}
    return [each for each in compared if each.method in wanted]
