"""The compared methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrepulse.evaluation.initial_noise import CoupledNoise, InitialNoise, PinkNoise
from fastrepulse.methods import (
    CADS,
    SPARKE,
    SPELL,
    SVGD,
    IntervalGuidance,
    MeanScore,
    ParticleGuidance,
    RandomPush,
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
        method: Name of the method in tables and plots.
        strength: Strength in tables and plots; empty for a method without a strength.
        arguments: Arguments of `fastrepulse.sample` besides prompts, number of images and seed.
        noise: Change of the initial noise, if there is one.
    """

    method: str
    strength: str
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"repulsion": None})
    noise: InitialNoise | None = None

    @property
    def title(self) -> str:
        return f"{self.method}, {self.strength}" if self.strength else self.method

    def key(self) -> dict[str, Any]:
        """Returns the method, strength and arguments for JSON, to identify a run."""

        def plain(value: Any) -> Any:
            if isinstance(value, list):
                return [plain(each) for each in value]
            return value.settings() if isinstance(value, (Method, Correction)) else value

        arguments = {name: plain(value) for name, value in self.arguments.items()}
        key = {"method": self.method, "strength": self.strength, "arguments": arguments}
        return key | ({"noise": self.noise.settings()} if self.noise else {})


@dataclass(frozen=True)
class Family:
    """One method with a strength that the evaluation finds (`search`).

    Args:
        method: Name of the method in tables and plots.
        arguments: Returns the arguments of `fastrepulse.sample` for a strength.
        low: Lowest strength, where the method has little effect.
        high: Highest strength.
        noise: Returns the change of the initial noise for a strength, if there is one.
    """

    method: str
    arguments: Callable[[float], Mapping[str, Any]]
    low: float
    high: float
    noise: Callable[[float], InitialNoise | None] = lambda strength: None

    def at(self, strength: float) -> Setting:
        """Returns the method at one strength."""
        name, arguments = f"{strength:.3g}", self.arguments(strength)
        return Setting(self.method, name, arguments, self.noise(strength))


def method_family(method: str, make: Callable[[float], Method], low: float, high: float) -> Family:
    """Returns the family of a method that takes its strength as first argument."""
    return Family(method, lambda strength: {"repulsion": make(strength)}, low, high)


def langevin(step_size: float) -> Mapping[str, Any]:
    """Returns a Langevin step at each noise level from 8 to 1; its size is in units of sigma^2."""
    correction = Correction(step_size=float(f"{step_size:.3g}"), window=(8.0, 1.0))
    return {"repulsion": None, "corrections": [correction]}


def interval_guidance(strength: float) -> Mapping[str, Any]:
    """Returns guidance only at noise levels up to 15 / strength."""
    return {"repulsion": IntervalGuidance((float(f"{15 / strength:.3g}"), 0.0))}


INDEPENDENT = Setting("independent", "")
FULL_CAPTIONS = Setting("full captions", "")
"""The set of maximum diversity: independent samples of captions that name every attribute."""

DEFAULT = Setting("default", f"{Repulsion().strength:g}", {"repulsion": Repulsion()})

NO_PUSH = 1e-9
"""A strength at which nothing is pushed, and pause and restart stay."""

PARTS = [
    Setting("pause alone", "", {"repulsion": Repulsion(strength=NO_PUSH, restart=None)}),
    Setting("pause and restart", "", {"repulsion": Repulsion(strength=NO_PUSH)}),
    Setting("push alone", "", {"repulsion": Repulsion(pause=None, restart=None)}),
    Setting("random push", "", {"repulsion": RandomPush()}),
    Setting("default without guidance", "", {"repulsion": Repulsion(), "guidance_scale": 1.0}),
]
"""Parts of the default; the default with a push that knows of no other particle, and unguided."""

OURS = ("default", "repulsion", *(part.method for part in PARTS))
"""The names of this package's own method and of its parts."""

GUIDANCE = [
    Setting("guidance scale", f"{scale:g}", {"repulsion": None, "guidance_scale": scale})
    for scale in (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
]
"""Independent samples at each guidance scale: the first rival of every method."""

COUPLED = Setting("coupled noise", "", noise=CoupledNoise())

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
    Family("interval guidance", interval_guidance, 1, 150),
    Family("Langevin", langevin, 0.01, 100),
    Family("pink noise", lambda s: {"repulsion": None}, 0.01, 1, PinkNoise),
]
"""All methods with a strength."""

ALL: list[Setting | Family] = [DEFAULT, *PARTS, *GUIDANCE, COUPLED, *FAMILIES]

QUICK: list[Setting | Family] = [
    DEFAULT,
    *(f for f in FAMILIES if f.method in ("Particle Guidance", "CADS", "interval guidance")),
]
"""The methods of `--quick`."""


def select(compared: Sequence[Setting | Family], methods: Sequence[str]) -> list[Setting | Family]:
    """Returns the methods with these names, ignoring case.

    Raises:
        ValueError: If a name is unknown.
    """
    known = {each.method.lower(): each.method for each in compared}
    for name in methods:
        if name.lower() not in known:
            raise ValueError(f"methods must be of {', '.join(known.values())}; got {name!r}")
    wanted = {known[name.lower()] for name in methods}
    return [each for each in compared if each.method in wanted]
