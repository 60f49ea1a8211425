"""What is measured: figures of each setting with their intervals, and how settings compare."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.evaluation.runs import Run
from fastrepulse.evaluation.settings import FULL_CAPTIONS, INDEPENDENT, Setting
from fastrepulse.metrics import (
    Distance,
    SmallSetWarning,
    distances,
    frechet_distance,
    kernel_distance,
    neighbourhood,
    vendi_score,
)

PER_PROMPT = ("vendi", "similarity", "accuracy", "attributes")
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
        vendi: Vendi score of the judge's features, of the N pictures of a prompt, in [1, N].
        similarity: Mean cosine similarity of their pairs.
        accuracy: Share of them that are the subject, in [0, 1].
        attributes: Share of the attributes' values that appear among them, in [0, 1].
        gain: Vendi score over that of independent samples of the same prompt and noise.
        frechet: Fréchet distance of all pictures to rendered ones.
        kernel: Kernel distance of the same.
        recall: Share of rendered pictures that lie in the ball of a picture, in [0, 1].
        coverage: Share of rendered pictures with a picture in their ball, in [0, 1].
        to_diverse: Distances to the set of maximum diversity by the name of the space; empty for
            that set itself.
        nearer: By how much less the kernel distance to that set is than that of independent
            samples, seed by seed.
        pairs: The Vendi scores that the estimates are of, one for each seed and prompt.
    """

    setting: Setting
    vendi: Estimate
    similarity: Estimate
    accuracy: Estimate
    attributes: Estimate
    gain: Estimate
    frechet: float
    kernel: float
    recall: float
    coverage: float
    to_diverse: dict[str, Distance]
    nearer: dict[str, Estimate]
    pairs: list[float]

    def gain_over(self, other: "Row") -> Estimate:
        """Returns by how much the Vendi score is higher, paired by prompt and noise."""
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
    base = [figures["vendi"] for run in runs[INDEPENDENT.title] for figures in run.figures]
    base_apart = _kernel_distances([run.features() for run in runs[INDEPENDENT.title]], diverse)
    rows = []
    for own in tqdm(runs.values(), desc="measure", disable=not progress):
        setting = own[0].setting
        by_seed = [run.features() for run in own]
        features = _joined(by_seed)
        figures = [figures for run in own for figures in run.figures]
        estimates = {name: Estimate.of([f[name] for f in figures]) for name in PER_PROMPT}
        pairs = [f["vendi"] for f in figures]
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
                frechet=frechet,
                kernel=kernel_distance(features["content"], reference),
                recall=near.recall,
                coverage=near.coverage,
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
    """Returns the mean Vendi score of N rendered pictures of one subject."""
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
        Those whose Vendi score is higher beyond the interval of the paired difference.
    """
    return [
        other
        for other in rows
        if other.setting.method not in (row.setting.method, FULL_CAPTIONS.method)
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
