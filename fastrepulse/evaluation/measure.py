"""The figures of each setting, with confidence intervals and comparisons."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.evaluation.runs import Run
from fastrepulse.evaluation.settings import FULL_CAPTIONS, INDEPENDENT, OURS, Setting
from fastrepulse.metrics import (
    Distance,
    SmallSetWarning,
    distances,
    frechet_distance,
    kernel_distance,
    recall_and_coverage,
)

PER_PROMPT = [
    "attribute_vendi",
    "coverage",
    "most_common",
    "accuracy",
    "off_data",
    "vendi",
    "similarity",
]
"""The figures of the N images of each prompt and seed."""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Estimates a mean by the percentile bootstrap (Efron 1979) with a fixed seed.

        The bootstrap assumes no distribution, and intervals of shares stay within [0, 1].
        """
        array = np.asarray(values)
        drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
        low, high = np.quantile(array[drawn].mean(axis=1), (0.025, 0.975))
        return cls(float(array.mean()), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """The figures of one setting. For those from `attribute_vendi` to `vendi`, see `Figures`.

    Args:
        similarity: Mean cosine similarity over pairs of images.
        gain: Attribute Vendi score minus the score of independent samples of the same noise.
        cleanliness: `off_data` divided by its value for independent samples.
        frechet: Fréchet distance of all images to rendered pictures.
        kernel: Kernel distance of all images to rendered pictures.
        recall: Share of rendered pictures that lie in the ball of an image, in [0, 1].
        covered: Share of rendered pictures with an image in their ball, in [0, 1].
        to_diverse: Distances to the images of full captions in each space; empty for full captions.
        nearer: Decrease of the kernel distance to the images of full captions, compared with
            independent samples of the same seed.
        pairs: Attribute Vendi score of each seed and prompt.
        over_guidance: Difference to independent samples at the best guidance scale; None if it is
            not known, or if the row is cleaner or more accurate than at every scale.
    """

    setting: Setting
    attribute_vendi: Estimate
    coverage: Estimate
    most_common: Estimate
    accuracy: Estimate
    off_data: Estimate
    vendi: Estimate
    similarity: Estimate
    gain: Estimate
    cleanliness: float
    frechet: float
    kernel: float
    recall: float
    covered: float
    to_diverse: dict[str, Distance]
    nearer: dict[str, Estimate]
    pairs: list[float]
    over_guidance: Estimate | None = None

    def gain_over(self, other: "Row") -> Estimate:
        """Returns the paired difference of the attribute Vendi scores."""
        return Estimate.of(_differences(self.pairs, other.pairs))


def measure(
    runs: Mapping[str, Sequence[Run]],
    rendered: Tensor,  # [subjects, M, d]
    progress: bool = True,
) -> list[Row]:
    """Returns a row for each setting, in the order of the runs.

    The runs of all settings have the same seeds. Independent samples and full captions are among
    the settings. `rendered` has the judge's features of rendered pictures.
    """
    reference = rendered.flatten(0, 1)
    diverse = [run.features() for run in runs[FULL_CAPTIONS.title]]
    all_diverse = _joined(diverse)
    independent = [figures for run in runs[INDEPENDENT.title] for figures in run.figures]
    base = [figures["attribute_vendi"] for figures in independent]
    base_off = sum(figures["off_data"] for figures in independent) / len(independent)
    base_apart = _kernel_distances([run.features() for run in runs[INDEPENDENT.title]], diverse)
    rows = []
    for own in tqdm(runs.values(), desc="measure", disable=not progress):
        setting = own[0].setting
        by_seed = [run.features() for run in own]
        features = _joined(by_seed)
        figures = [figures for run in own for figures in run.figures]
        estimates = {name: Estimate.of([f[name] for f in figures]) for name in PER_PROMPT}
        pairs = [f["attribute_vendi"] for f in figures]
        recall, covered = recall_and_coverage(features["content"], reference)
        to_diverse: dict[str, Distance] = {}
        nearer: dict[str, Estimate] = {}
        with warnings.catch_warnings():
            # All sets have one size, and the report warns if it is too small
            warnings.simplefilter("ignore", SmallSetWarning)
            frechet = frechet_distance(features["content"], reference, allow_small_sets=True)
            if setting != FULL_CAPTIONS:
                to_diverse = distances(features, all_diverse)
                apart = _kernel_distances(by_seed, diverse)
                nearer = {
                    space: Estimate.of(_differences(base_apart[space], apart[space]))
                    for space in apart
                }
        rows.append(
            Row(
                setting,
                **estimates,
                gain=Estimate.of(_differences(pairs, base)),
                cleanliness=estimates["off_data"].mean / base_off,
                frechet=frechet,
                kernel=kernel_distance(features["content"], reference),
                recall=recall,
                covered=covered,
                to_diverse=to_diverse,
                nearer=nearer,
                pairs=pairs,
            )
        )
    return rows


def better_than(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Returns other methods' settings that are more diverse than `row` and about as accurate.

    The interval of the paired difference of the attribute Vendi scores is above 0. The accuracy is
    at most one percentage point lower.
    """
    return [
        other
        for other in rows
        if other.setting.method not in (*OURS, FULL_CAPTIONS.method)
        and other.accuracy.mean >= row.accuracy.mean - 0.01
        and other.gain_over(row).low > 0
    ]


Features = dict[str, Tensor]
"""Features [n, d] of each space."""


def _joined(features: Sequence[Features]) -> Features:
    return {space: torch.cat([each[space] for each in features]) for space in features[0]}


def _kernel_distances(a: Sequence[Features], b: Sequence[Features]) -> dict[str, list[float]]:
    """Returns the kernel distances of sets of the same seed in each space."""
    pairs = list(zip(a, b, strict=True))
    return {space: [kernel_distance(x[space], y[space]) for x, y in pairs] for space in a[0]}


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]
