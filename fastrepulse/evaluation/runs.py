"""What is run, and how finished runs are kept, so that a killed evaluation goes on."""

import json
import os
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
from fastrepulse.default_model.judge import judge_backbone
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.evaluation.settings import FULL_CAPTIONS, Setting
from fastrepulse.metrics import mean_pairwise_similarity, to_pictures
from fastrepulse.models import Model
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.output import image_grid
from fastrepulse.sampling.results import SampleResult
from fastrepulse.sampling.sample import DEFAULT_GUIDANCE_SCALE, sample

SPACES = ("content", "location", "style")
"""The spaces of the thesis in which features are kept."""

MICRO_BATCH_SIZE = {"cpu": 32, "cuda": 256}
"""Fixed for a kind of device, because the result depends on it by rounding."""


@dataclass(frozen=True)
class Run:
    """The finished run of one setting and seed.

    Args:
        setting: What was run.
        seed: From which noise.
        figures: What was measured on the pictures of each prompt, in the order of `PROMPTS`.
        path: Where its files are, without the suffix.
    """

    setting: Setting
    seed: int
    figures: list[dict[str, float]]
    path: Path

    def features(self) -> dict[str, Tensor]:
        """Returns the judge's features [prompts * N, d] by the name of the space."""
        return {k: v.float() for k, v in load_file(_features_file(self.path)).items()}

    def sheet(self) -> Image.Image:
        """Returns the pictures: a row for each prompt, a column for each particle."""
        with Image.open(_sheet_file(self.path)) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class Protocol:
    """What all runs of an evaluation have in common.

    Args:
        num_particles: N >= 2 of each prompt and seed.
        num_inference_steps: T of every run.
        guidance_scale: Of every run.
        dtype: What the model's weights are, such as "float32".
    """

    num_particles: int
    num_inference_steps: int
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    dtype: str = "float32"


class RunLog:
    """The finished runs in a folder: a line of JSON each, features and a contact sheet beside it.

    A run is added when its files are there, and its line is written at once: whenever the process
    is killed, what the log names is whole.

    Args:
        folder: Where they are kept, made if need be.
        protocol: What they have in common; runs of another are not found.
    """

    def __init__(self, folder: Path, protocol: Protocol):
        self.protocol = protocol
        self.files = folder / "runs"
        self.files.mkdir(parents=True, exist_ok=True)
        self.log = folder / "runs.jsonl"
        text = self.log.read_text("utf-8") if self.log.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            # Killed while it wrote the last line
            self.log.write_text(whole, "utf-8")
        self.rows = [json.loads(line) for line in whole.splitlines()]

    def find(self, setting: Setting, seed: int) -> Run | None:
        """Returns the run of a setting and a seed, or None if it is still to be done."""
        key = self._key(setting, seed)
        for row in self.rows:
            path = self.files / row["files"]
            if row["key"] == key and _features_file(path).exists() and _sheet_file(path).exists():
                return Run(setting, seed, row["figures"], path)
        return None

    def add(self, setting: Setting, seed: int, result: SampleResult) -> None:
        """Measures the pictures of a run and keeps what tables and plots are made of."""
        n, images = self.protocol.num_particles, result.images
        features = judge_backbone()(to_pictures(images))
        figures = []
        for i, (prompt, subject) in enumerate(PROMPTS.items()):
            own = slice(i * n, (i + 1) * n)
            similarity = mean_pairwise_similarity(features["content"][own])
            measured = asdict(Figures.of(images[own], subject))
            figures.append({"prompt": prompt, "similarity": similarity, **measured})
        key = self._key(setting, seed)
        path = self.files / _file_name(setting, seed, key)
        save_file({space: features[space].half() for space in SPACES}, _features_file(path))
        # Without gaps, so that no picture shares a block of the JPEG with another
        image_grid(images, columns=n, gap=0).save(_sheet_file(path), quality=90)
        row = {"key": key, "files": path.name, "figures": figures}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def _key(self, setting: Setting, seed: int) -> dict[str, Any]:
        key = {**setting.key(), **asdict(self.protocol), "seed": seed}
        # As it comes back from the file
        return json.loads(json.dumps(key))


def run_all(
    log: RunLog,
    model: Model,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    compile: bool,
    progress: bool,
) -> dict[str, list[Run]]:
    """Samples what is not in the log yet; returns all runs by the title of their setting.

    Seed by seed, so that an evaluation that was stopped has compared all settings on fewer seeds.
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
    """Returns what was measured on every prompt and seed of a setting, run where it is not yet."""
    runs = run_all(log, model, [setting], seeds, compile, progress)
    return [figures for run in runs[setting.title] for figures in run.figures]


def sample_setting(
    setting: Setting, seed: int, protocol: Protocol, model: Model, compile: bool
) -> SampleResult:
    """Draws N pictures of every subject with one setting; all settings share a seed's noise."""
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
    if setting != FULL_CAPTIONS:
        return sample(list(PROMPTS), n, **{**common, "repulsion": None, **setting.arguments})
    captions = full_captions(seed, n)
    # Noise of its own: what the others share with it would bring them nearer
    noise = initial_noise(2**32 + seed, len(captions), model.latent_shape(None, None))
    return sample(captions, 1, latents=noise, repulsion=None, **common)


def full_captions(seed: int, count: int) -> list[str]:
    """Draws captions that name every attribute, `count` of each subject, values evenly."""
    rng = random.Random(f"full captions {seed}")
    return [
        subject.caption({a.name: rng.choice(a.values) for a in subject.attributes})
        for subject in SUBJECTS
        for _ in range(count)
    ]


def _file_name(setting: Setting, seed: int, key: dict[str, Any]) -> str:
    """Returns a name that is read by people and is another for another key."""
    name = re.sub(r"[^a-z0-9.]+", "-", setting.title.lower())
    return f"{name}-seed-{seed}-{zlib.crc32(json.dumps(key).encode()):08x}"


def _features_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.safetensors")


def _sheet_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.jpg")
