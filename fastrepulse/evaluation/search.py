"""The strength at which a method is compared: the largest that keeps pictures right and clean.

One rule for all methods, applied by the evaluation itself on seeds that the comparison never uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastrepulse.evaluation.settings import Family, Setting

CALIBRATION_SEEDS = (1000, 1001)
GRID = 17
"""Strengths on the geometric grid from a family's lowest to its highest."""

Figures = list[dict[str, float]]
"""What was measured on each prompt and seed."""


@dataclass(frozen=True)
class Rule:
    """What pictures must keep, as means over prompts and seeds.

    Args:
        accuracy: The least prompt accuracy, in [0, 1].
        cleanliness: The most that the distance to rendered pictures may be, over that of full
            captions: what the model draws when it is asked for as much variety.
    """

    accuracy: float = 0.99
    cleanliness: float = 1.05

    def holds(self, figures: Figures, varied: Figures) -> bool:
        """Says whether pictures of a setting keep to the rule, given those of full captions."""
        clean = mean(figures, "off_data") <= self.cleanliness * mean(varied, "off_data")
        return clean and mean(figures, "accuracy") >= self.accuracy


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        setting: The method at its strength.
        holds: Whether the rule holds there; if not even the lowest strength keeps to it, it does
            not.
        curve: For each strength that was tried, in order: strength, whether it keeps to the rule,
            and the means of what was measured.
    """

    setting: Setting
    holds: bool
    curve: list[dict[str, Any]]


def mean(figures: Figures, name: str) -> float:
    """Returns the mean of one figure."""
    return sum(each[name] for each in figures) / len(figures)


def find_strength(
    family: Family, figures_of: Callable[[Setting], Figures], varied: Figures, rule: Rule
) -> Found:
    """Finds the largest strength on the grid that keeps to the rule, by bisection.

    Args:
        family: The method.
        figures_of: Samples and measures a setting on the calibration seeds.
        varied: Figures of full captions.
        rule: What must hold. It is taken to hold up to some strength and to fail from there on.
    """
    ratio = (family.high / family.low) ** (1 / (GRID - 1))
    tried: dict[int, dict[str, Any]] = {}

    def holds(place: int) -> bool:
        if place not in tried:
            strength = family.low * ratio**place
            figures = figures_of(family.at(strength))
            means = {name: mean(figures, name) for name in figures[0] if name != "prompt"}
            kept = rule.holds(figures, varied)
            tried[place] = {"strength": strength, "holds": kept, **means}
        return tried[place]["holds"]

    best, worst = -1, GRID
    while worst - best > 1:
        middle = (best + worst) // 2
        best, worst = (middle, worst) if holds(middle) else (best, middle)
    chosen = max(best, 0)
    curve = [tried[place] for place in sorted(tried)]
    return Found(family.at(family.low * ratio**chosen), best >= 0, curve)


def search(
    compared: Sequence[Setting | Family],
    figures_of: Callable[[Setting], Figures],
    varied: Setting,
    rule: Rule,
) -> tuple[list[Setting], dict[str, Any]]:
    """Returns what is compared with every family at its strength, and what was tried, for JSON.

    Args:
        compared: Methods to search, and settings that are left as they are.
        figures_of: Samples and measures a setting on the calibration seeds.
        varied: Full captions, whose cleanliness is the measure of the others'.
        rule: What a strength must keep.
    """
    settings: list[Setting] = []
    tried: dict[str, Any] = {"rule": asdict(rule), "methods": {}}
    searched = any(isinstance(each, Family) for each in compared)
    figures_of_varied = figures_of(varied) if searched else []
    for each in compared:
        if isinstance(each, Setting):
            settings.append(each)
            continue
        found = find_strength(each, figures_of, figures_of_varied, rule)
        settings.append(found.setting)
        tried["methods"][each.method] = {"holds": found.holds, "curve": found.curve}
    return settings, tried
