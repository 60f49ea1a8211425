"""Samples the runs and stores finished runs, so that an evaluation can resume."""

import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from fastrepulse.default_model.figures import PROMPTS, Figures
from fastrepulse.default_model.judge import spaces_of
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.evaluation.settings import FULL_CAPTIONS, Setting
from fastrepulse.files import to_disk, whole_file, write_text
from fastrepulse.metrics import mean_pairwise_similarity
from fastrepulse.models import Model
from fastrepulse.models.shipped import Recommended
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.output import image_grid
from fastrepulse.sampling.results import SampleResult
from fastrepulse.sampling.sample import sample

MICRO_BATCH_SIZE = {"cpu": 32, "cuda": 256}
"""Fixed for each kind of device, because rounding depends on the batch size."""


@dataclass(frozen=True)
class Run:
    """A finished run of one setting and seed."""

    setting: Setting
    seed: int
    figures: list[dict[str, float]]
    """The figures of each prompt, in the order of `PROMPTS`."""
    path: Path
    """The path of the run's files without suffix."""

    def features(self) -> dict[str, Tensor]:
        """Returns the judge's features [prompts * N, d] of each space."""
        return {k: v.float() for k, v in load_file(_features_file(self.path)).items()}

    def sheet(self) -> Image.Image:
        """Returns the images: a row for each prompt, a column for each particle."""
        with Image.open(_sheet_file(self.path)) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class Protocol:
    """Settings shared by all runs of an evaluation; see `evaluate`."""

    num_particles: int
    num_inference_steps: int
    guidance_scale: float = Recommended().guidance_scale
    dtype: str = "float32"
    model: str = "small"


class RunLog:
    """The finished runs in a folder: one line of JSON, a feature file and a contact sheet each.

    The line is written after the other files, so every run in the log is complete even if the
    process is killed. `find` ignores runs with another protocol.
    """

    def __init__(self, folder: Path, protocol: Protocol):
        self.protocol = protocol
        self.files = folder / "runs"
        self.files.mkdir(parents=True, exist_ok=True)
        self.log = folder / "runs.jsonl"
        text = self.log.read_text("utf-8") if self.log.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            # The process was killed while writing the last line
            write_text(self.log, whole)
        self.rows = [json.loads(line) for line in whole.splitlines()]

    def find(self, setting: Setting, seed: int) -> Run | None:
        """Returns the run of a setting and a seed, or None if it is not finished."""
        key = self._key(setting, seed)
        for row in self.rows:
            path = self.files / row["files"]
            if row["key"] == key and _features_file(path).exists() and _sheet_file(path).exists():
                return Run(setting, seed, row["figures"], path)
        return None

    def add(self, setting: Setting, seed: int, result: SampleResult) -> None:
        """Measures the images of a run and stores figures, features and images."""
        n, images = self.protocol.num_particles, result.images
        features = spaces_of(images)
        figures = []
        for i, (prompt, subject) in enumerate(PROMPTS.items()):
            own = slice(i * n, (i + 1) * n)
            similarity = mean_pairwise_similarity(features["content"][own])
            measured = asdict(Figures.of(images[own], subject))
            figures.append({"prompt": prompt, "similarity": similarity, **measured})
        key = self._key(setting, seed)
        path = self.files / _file_name(setting, seed, key)
        with whole_file(_features_file(path)) as partial:
            save_file({space: rows.half() for space, rows in features.items()}, partial)
        # Without gaps, so that no JPEG block covers two images
        sheet = image_grid(images, columns=n, gap=0)
        with whole_file(_sheet_file(path)) as partial:
            sheet.save(partial, quality=90)
        row = {"key": key, "files": path.name, "figures": figures}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        to_disk(self.log)
        self.rows.append(row)

    def _key(self, setting: Setting, seed: int) -> dict[str, Any]:
        key = {**setting.key(), **asdict(self.protocol), "seed": seed}
        # The same types as after reading the file
        return json.loads(json.dumps(key))


def run_all(
    log: RunLog,
    model: Model,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    compile: bool,
    progress: bool,
) -> dict[str, list[Run]]:
    """Samples missing runs and returns all runs by the title of their setting.

    The outer loop is over seeds, so a stopped evaluation has all settings for its finished seeds.
    """
    jobs = [(setting, seed) for seed in seeds for setting in settings]
    left = [job for job in jobs if log.find(*job) is None]
    done = len(jobs) - len(left)
    with tqdm(desc="evaluate", total=len(jobs), initial=done, disable=not progress) as bar:
        for setting, seed in left:
            bar.set_postfix_str(f"{setting.title}, seed {seed}")
            log.add(setting, seed, sample_setting(setting, seed, log.protocol, model, compile))
            bar.update()
    runs: dict[str, list[Run]] = {setting.title: [] for setting in settings}
    for setting, seed in jobs:
        run = log.find(setting, seed)
        assert run is not None
        runs[setting.title].append(run)
    return runs


def figures_of(
    log: RunLog, model: Model, setting: Setting, seeds: Sequence[int], compile: bool, progress: bool
) -> list[dict[str, float]]:
    """Returns the figures of a setting for all prompts and seeds, sampling missing runs."""
    runs = run_all(log, model, [setting], seeds, compile, progress)
    return [figures for run in runs[setting.title] for figures in run.figures]


def sample_setting(
    setting: Setting, seed: int, protocol: Protocol, model: Model, compile: bool
) -> SampleResult:
    """Draws N images of every subject. All settings with a seed start from the same noise."""
    n = protocol.num_particles
    common: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "num_inference_steps": protocol.num_inference_steps,
        "guidance_scale": protocol.guidance_scale,
        "micro_batch_size": MICRO_BATCH_SIZE[model.device.type],
        "compile": compile,
        "progress": False,
    }
    shape = model.latent_shape(None, None)
    if setting.noise is not None:
        noise = setting.noise(initial_noise(seed, n, shape))
        common["latents"] = noise.repeat(len(PROMPTS), 1, 1, 1)
    if setting != FULL_CAPTIONS:
        return sample(list(PROMPTS), n, **{**common, "repulsion": None, **setting.arguments})
    captions = full_captions(seed, n)
    # Other noise, because shared noise would reduce the distance of the other settings
    noise = initial_noise(2**32 + seed, len(captions), shape)
    return sample(captions, 1, latents=noise, repulsion=None, **common)


def full_captions(seed: int, count: int) -> list[str]:
    """Draws `count` captions of each subject that name all attributes, with uniform values."""
    rng = random.Random(f"full captions {seed}")
    return [
        subject.caption({a.name: rng.choice(a.values) for a in subject.attributes})
        for subject in SUBJECTS
        for _ in range(count)
    ]


def _file_name(setting: Setting, seed: int, key: dict[str, Any]) -> str:
    """Returns a readable file name that is unique for each key."""
    name = re.sub(r"[^a-z0-9.]+", "-", setting.title.lower())
    return f"{name}-seed-{seed}-{zlib.crc32(json.dumps(key).encode()):08x}"


def _features_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.safetensors")


def _sheet_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.jpg")
