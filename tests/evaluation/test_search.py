"""The search for the largest strength within the rule."""

import math

import pytest

from fastrepulse.evaluation.search import GRID, Rule, find_strength, search
from fastrepulse.evaluation.settings import Family, Setting

FAMILY = Family("a method", lambda strength: {"guidance_scale": strength}, 0.1, 10)
VARIED = Setting("full captions", "")


def measured(accuracy_falls_at=math.inf, dirty_from=math.inf):
    """Returns a stand-in for sampling and the list of sampled settings."""
    asked = []

    def figures_of(setting):
        asked.append(setting.title)
        strength = setting.arguments.get("guidance_scale", 0.0)
        accuracy = 1.0 if strength <= accuracy_falls_at else 0.97
        off_data = 1.4 if strength <= dirty_from else 1.6
        return [{"prompt": "a planet", "accuracy": accuracy, "off_data": off_data}] * 2

    return figures_of, asked


@pytest.mark.parametrize("edge", [0.15, 0.7, 2.0, 9.0])
@pytest.mark.parametrize("what", ["accuracy_falls_at", "dirty_from"])
def test_the_search_finds_the_largest_strength_within_the_rule(what, edge):
    figures_of, asked = measured(**{what: edge})
    setting, found = find_strength(FAMILY, figures_of, figures_of(VARIED), Rule())
    strength = setting.arguments["guidance_scale"]
    ratio = (FAMILY.high / FAMILY.low) ** (1 / (GRID - 1))
    assert found["holds"] and strength <= edge < strength * ratio
    # Each strength is sampled once; one call was for full captions
    assert len(asked) - 1 == len(found["curve"]) <= math.ceil(math.log2(GRID + 1))
    assert [row["holds"] for row in found["curve"]] == [
        row["strength"] <= edge for row in found["curve"]
    ]


def test_the_search_ends_at_the_highest_or_lowest_strength():
    figures_of, _ = measured()
    setting, found = find_strength(FAMILY, figures_of, figures_of(VARIED), Rule())
    assert found["holds"] and setting.arguments["guidance_scale"] == pytest.approx(FAMILY.high)
    figures_of, _ = measured(dirty_from=0.01)
    setting, found = find_strength(FAMILY, figures_of, figures_of(VARIED), Rule())
    assert not found["holds"] and setting == FAMILY.at(FAMILY.low)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [(Rule(), False), (Rule(cleanliness=1.2), True), (Rule(0.995, 1.2), False)],
)
def test_both_limits_apply(rule, kept):
    varied = [{"accuracy": 1.0, "off_data": 1.0}]
    assert rule.holds([{"accuracy": 0.99, "off_data": 1.1}], varied) is kept


def test_fixed_settings_are_unchanged_and_tried_strengths_are_recorded():
    figures_of, _ = measured(accuracy_falls_at=1.0)
    fixed = Setting("fixed", "")
    settings, tried = search([fixed, FAMILY], figures_of, VARIED, Rule())
    assert settings[0] is fixed and settings[1].method == "a method"
    assert tried["rule"] == {"accuracy": 0.99, "cleanliness": 1.05}
    assert list(tried["methods"]) == ["a method"] and tried["methods"]["a method"]["holds"]
