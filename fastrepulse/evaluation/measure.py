"""What is measured: figures of each setting with their intervals, and how settings compare."""

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
    neighbourhood,
    vendi_score,
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
"""What is measured on the N pictures of each prompt and seed."""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Estimates a mean by the percentile bootstrap (Efron 1979), with a fixed seed.

        It assumes no distribution, and keeps the interval of a share within [0, 1].

        Args:
            values: One for each (prompt, seed) pair, at least 1.
        """
        array = np.asarray(values)
        drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
        low, high = np.quantile(array[drawn].mean(axis=1), (0.025, 0.975))
        return cls(float(array.mean()), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """What is known of one setting.

    Args:
        setting: Which one.
        attribute_vendi: Effective number of different pictures among the N of a prompt, by the
            attributes that they show, in [1, N].
        coverage: Share of the attributes' values that appear among them, in [0, 1].
        most_common: Share of an attribute's most common value, in [0, 1].
        accuracy: Share of them that are the subject, in [0, 1].
        off_data: Distance to rendered pictures, 1 for rendered ones.
        vendi: Vendi score of the judge's features, in [1, N], which dirt can raise.
        similarity: Mean cosine similarity of their pairs.
        gain: Attribute Vendi score over that of independent samples of the same prompt and noise.
        cleanliness: `off_data` over that of the same independent samples.
        frechet: Fréchet distance of all pictures to rendered ones.
        kernel: Kernel distance of the same.
        recall: Share of rendered pictures that lie in the ball of a picture, in [0, 1].
        covered: Share of rendered pictures with a picture in their ball, in [0, 1].
        to_diverse: Distances to the set of maximum diversity by the name of the space; empty for
            that set itself.
        nearer: By how much less the kernel distance to that set is than that of independent
            samples, seed by seed.
        pairs: The attribute Vendi scores that the estimates are of, one for each seed and prompt.
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

    def gain_over(self, other: "Row") -> Estimate:
        """Returns by how much the attribute Vendi score is higher, paired by prompt and noise."""
        return Estimate.of(_differences(self.pairs, other.pairs))


def measure(
    runs: Mapping[str, Sequence[Run]],
    rendered: Tensor,  # [subjects, M, d]
    progress: bool = True,
) -> list[Row]:
    """Returns a row for each setting, in the order of the runs.

    Args:
        runs: Of the same seeds for each setting, by its title; among them those of independent
            samples and of full captions.
        rendered: The judge's features of rendered pictures.
        progress: Whether to show a progress bar.
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
        near = neighbourhood(features["content"], reference)
        to_diverse: dict[str, Distance] = {}
        nearer: dict[str, Estimate] = {}
        with warnings.catch_warnings():
            # All sets are of one size, and the report says when it is too small
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
                recall=near.recall,
                covered=near.coverage,
                to_diverse=to_diverse,
                nearer=nearer,
                pairs=pairs,
            )
        )
    return rows


def rendered_vendi(
    rendered: Tensor,  # [subjects, M, d]
    num_particles: int,
) -> float:
    """Returns the mean Vendi score of the features of N rendered pictures of one subject."""
    sets = [
        vendi_score(rows)
        for subject in rendered
        for rows in subject.split(num_particles)
        if len(rows) == min(num_particles, len(subject))
    ]
    return sum(sets) / len(sets)


def better_than(row: Row, rows: Sequence[Row], tolerance: float = 0.01) -> list[Row]:
    """Returns settings of other methods that are surely more diverse at no lower accuracy.

    Args:
        row: The setting that is held against the others.
        rows: All settings.
        tolerance: By how much the prompt accuracy may be lower.

    Returns:
        Those whose attribute Vendi score is higher beyond the interval of the paired difference.
    """
    return [
        other
        for other in rows
        if other.setting.method not in (*OURS, FULL_CAPTIONS.method)
        and other.accuracy.mean >= row.accuracy.mean - tolerance
        and other.gain_over(row).low > 0
    ]


Features = dict[str, Tensor]
"""Features [n, d] by the name of the space."""


def _joined(features: Sequence[Features]) -> Features:
    return {space: torch.cat([each[space] for each in features]) for space in features[0]}


def _kernel_distances(a: Sequence[Features], b: Sequence[Features]) -> dict[str, list[float]]:
    """Returns the kernel distances of sets of the same seed, by the name of the space."""
    pairs = list(zip(a, b, strict=True))
    return {space: [kernel_distance(x[space], y[space]) for x, y in pairs] for space in a[0]}


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]
