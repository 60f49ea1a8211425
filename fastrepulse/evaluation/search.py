"""The search for each method's largest strength that keeps images accurate and clean.

All methods follow one rule, on seeds that the comparison does not use.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastrepulse.evaluation.settings import Family, Setting

CALIBRATION_SEEDS = (1000, 1001)
GRID = 17
"""Number of strengths on the geometric grid from a family's lowest to its highest."""

Figures = list[dict[str, float]]
"""The figures of each prompt and seed."""


@dataclass(frozen=True)
class Rule:
    """Limits for the images of a setting, as means over prompts and seeds.

    Args:
        accuracy: Smallest prompt accuracy, in [0, 1].
        cleanliness: Largest ratio of `off_data` to its value for full captions, the most varied
            images that the model draws.
    """

    accuracy: float = 0.99
    cleanliness: float = 1.05

    def holds(self, figures: Figures, varied: Figures) -> bool:
        """Whether a setting's figures are within the limits, given the figures of full captions."""
        clean = mean(figures, "off_data") <= self.cleanliness * mean(varied, "off_data")
        return clean and mean(figures, "accuracy") >= self.accuracy


def mean(figures: Figures, name: str) -> float:
    return sum(each[name] for each in figures) / len(figures)


def find_strength(
    family: Family, figures_of: Callable[[Setting], Figures], varied: Figures, rule: Rule
) -> tuple[Setting, dict[str, Any]]:
    """Finds the largest strength on the grid within the rule's limits, by bisection.

    The bisection assumes that the rule holds up to some strength and fails above it. `figures_of`
    samples and measures a setting on the calibration seeds. `varied` has the figures of full
    captions. Returns the method at the strength found, and a record for JSON: whether the rule
    holds there (not if even the lowest strength breaks it), whether the range of strengths ends
    there, and the figures of all tried strengths.
    """
    ratio = (family.high / family.low) ** (1 / (GRID - 1))
    tried: dict[int, dict[str, Any]] = {}

    def holds(index: int) -> bool:
        if index not in tried:
            strength = family.low * ratio**index
            figures = figures_of(family.at(strength))
            means = {name: mean(figures, name) for name in figures[0] if name != "prompt"}
            kept = rule.holds(figures, varied)
            tried[index] = {"strength": strength, "holds": kept, **means}
        return tried[index]["holds"]

    best, worst = -1, GRID
    while worst - best > 1:
        middle = (best + worst) // 2
        best, worst = (middle, worst) if holds(middle) else (best, middle)
    chosen = max(best, 0)
    curve = [tried[index] for index in sorted(tried)]
    record = {"holds": best >= 0, "ends": best == GRID - 1, "curve": curve}
    return family.at(family.low * ratio**chosen), record


def search(
    compared: Sequence[Setting | Family],
    figures_of: Callable[[Setting], Figures],
    varied: Setting,
    rule: Rule,
) -> tuple[list[Setting], dict[str, Any]]:
    """Finds the strength of every family, and leaves settings unchanged.

    Returns the settings in order, and a record of all tried strengths for JSON. `varied` is the
    setting of full captions.
    """
    settings: list[Setting] = []
    tried: dict[str, Any] = {"rule": asdict(rule), "methods": {}}
    searched = any(isinstance(each, Family) for each in compared)
    figures_of_varied = figures_of(varied) if searched else []
    for each in compared:
        if isinstance(each, Setting):
            settings.append(each)
            continue
        setting, tried["methods"][each.method] = find_strength(
            each, figures_of, figures_of_varied, rule
        )
        settings.append(setting)
    return settings, tried
