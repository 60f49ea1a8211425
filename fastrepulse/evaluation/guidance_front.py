"""The first rival of every method: independent samples at another guidance scale."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from fastrepulse.evaluation.measure import Estimate, Row
from fastrepulse.evaluation.settings import FULL_CAPTIONS, GUIDANCE, INDEPENDENT

ACCURACY = 0.01
"""By how much the accuracy of independent samples may be below that of a method."""
MIXTURES = 21
"""Number of mixtures of two neighbouring guidance scales, the two themselves included."""


def compare_with_guidance(rows: Sequence[Row], guidance_scale: float) -> list[Row]:
    """Returns the rows with `over_guidance`, if independent samples have two scales or more.

    `guidance_scale` is the scale of all settings that have none of their own.
    """
    scales = {setting.title: setting.arguments["guidance_scale"] for setting in GUIDANCE}
    scales[INDEPENDENT.title] = guidance_scale
    front = [row for row in rows if row.setting.title in scales]
    front.sort(key=lambda row: scales[row.setting.title])
    return [
        row
        if row in front or row.setting == FULL_CAPTIONS
        else replace(row, over_guidance=over_guidance(row, front))
        for row in rows
    ]


def over_guidance(row: Row, independent: Sequence[Row]) -> Estimate | None:
    """Returns the paired difference of the attribute Vendi to the best guidance scale.

    The best one has the most different independent samples of all that are as clean as the row's
    images and as accurate. Between two scales the figures are interpolated.

    Args:
        row: The row of a method.
        independent: The rows of independent samples, in the order of their guidance scales.

    Returns:
        The difference, or None if the row is cleaner or more accurate than at every scale.
    """
    best = None
    for a, b in pairwise(independent):
        for share in np.linspace(0, 1, MIXTURES):
            off_data = (1 - share) * a.off_data.mean + share * b.off_data.mean
            accuracy = (1 - share) * a.accuracy.mean + share * b.accuracy.mean
            if off_data <= row.off_data.mean and accuracy >= row.accuracy.mean - ACCURACY:
                pairs = (1 - share) * np.asarray(a.pairs) + share * np.asarray(b.pairs)
                if best is None or pairs.mean() > best.mean():
                    best = pairs
    return None if best is None else Estimate.of((np.asarray(row.pairs) - best).tolist())
