"""More images than fit at once: one call of the pipeline for each micro-batch, in lockstep."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastrepulse.integrations.call import Call
from fastrepulse.integrations.lockstep import Lockstep
from fastrepulse.integrations.packing import unpack
from fastrepulse.integrations.parts import GUIDERS, repelling
from fastrepulse.integrations.pipeline_run import How, PipelineRun
from fastrepulse.methods.defaults import RunFacts
from fastrepulse.methods.repulsion import Repulsion

AN_IMAGE_EACH = ("embeds", "embeds_mask", "attention_mask", "latents")
"""Ends of the names of arguments that may have one row for each image."""

IMAGES = ("image", "mask_image")
"""Names of the images that image to image and inpainting start from."""


class MicroBatchRun(PipelineRun):
    """The run of one micro-batch, which repels from the other micro-batches too.

    Args:
        call: The pipeline's call for the micro-batch.
        how: How the images of all micro-batches repel each other.
        rows: Which of the images these are.
        lockstep: Where the micro-batches meet.
        settled: The repulsion for facts of a run, which all micro-batches share.
        update: Called after each step with the number of images that the step amounts to.
    """

    def __init__(
        self,
        call: Call,
        how: How,
        rows: range,
        lockstep: Lockstep,
        settled: dict[RunFacts, Repulsion],
        update: Callable[[float], Any],
    ):
        super().__init__(call, how)
        self.warns = rows.start == 0
        self._rows = rows
        self._lockstep = lockstep
        self._settled = settled
        self._update = update
        self._steps = 0

    def plan(self, scheduler: Any) -> list[int]:
        steps = super().plan(scheduler)
        self._steps = len(steps)
        return steps

    def advance(self, latents: Tensor) -> int | None:
        self._lockstep.stop_after_an_error()
        self._update(len(self._rows) / self._steps)
        return super().advance(latents)

    def _push(self, scheduler: Any, model_output: Tensor, sample: Tensor) -> Tensor:
        # In all other steps the micro-batches need not wait for each other
        if not self.repulsion.needs_step_at(self.schedule.sigmas[self.step]):
            return model_output
        push = super()._push

        def push_all(handed: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
            outputs, samples = (torch.cat(each) for each in zip(*handed, strict=True))
            return push(scheduler, outputs, samples).split([len(own) for own, _ in handed])

        return self._lockstep.meet((model_output, sample), push_all)

    def _resolved(self, facts: RunFacts) -> Repulsion:
        # Once, since a warning should come once
        if facts not in self._settled:
            self._settled[facts] = super()._resolved(facts)
        return self._settled[facts]

    def _indices(self, count: int) -> list[int]:
        return list(self._rows)


@dataclass(frozen=True)
class MicroBatches:
    """The images of one prompt, drawn in micro-batches over the same weights.

    Args:
        pipe: A plain pipeline.
        how: How the images repel each other.
        prompt: The prompt; None where text embeddings are given.
        generators: A generator for each image.
        size: Number of images in one call of the pipeline.
        given: The other arguments of the pipeline.
        progress: Whether to show a progress bar.
    """

    pipe: Any
    how: How
    prompt: str | None
    generators: Sequence[torch.Generator]
    size: int
    given: dict[str, Any]
    progress: bool

    def draw(self) -> tuple[Any, Tensor]:
        """Returns the pipeline's output for all images, and the latents [N, C, H, W]."""
        count = len(self.generators)
        starts = range(0, count, self.size)
        parts = [range(start, min(start + self.size, count)) for start in starts]
        with tqdm(
            desc="denoise",
            total=count,
            unit="img",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} "
            "[{elapsed}<{remaining}, {rate_fmt}]",
            disable=not self.progress,
        ) as bar:
            settled: dict[RunFacts, Repulsion] = {}
            calls = [partial(self._call, bar.update, settled, part) for part in parts]
            outputs, latents = joined(Lockstep(calls).run())
            return outputs, latents

    def _call(
        self,
        update: Callable[[float], Any],
        settled: dict[RunFacts, Repulsion],
        rows: range,
        lockstep: Lockstep,
    ) -> tuple[Any, Tensor]:
        """Calls a copy of the pipeline for some of the images."""
        pipe = copy.copy(self.pipe)
        # Guiders keep predictions of earlier steps
        own = {name: copy.deepcopy(vars(pipe)[name]) for name in GUIDERS if name in vars(pipe)}
        vars(pipe).update(own)
        pipe.set_progress_bar_config(disable=True)
        given = self._arguments(rows)
        call = Call.of(pipe, inspect.signature(type(pipe).__call__), **given)
        how = replace(self.how, group_size=len(self.generators))
        run = MicroBatchRun(call, how, rows, lockstep, settled, update)
        with repelling(pipe, run):
            output = pipe(**given)
        return output, unpack(run.latents, run.latent_size)

    def _arguments(self, rows: range) -> dict[str, Any]:
        """Returns the pipeline's arguments for some of the images."""
        count, part = len(self.generators), slice(rows.start, rows.stop)
        embeddings = self.given.get("prompt_embeds")
        a_row_each = embeddings is not None and len(embeddings) == count
        given: dict[str, Any] = {
            "num_images_per_prompt": 1 if a_row_each else len(rows),
            "generator": list(self.generators[part]),
        }
        if self.prompt is not None:
            given["prompt"] = self.prompt
        starts_from_images = "strength" in inspect.signature(self.pipe.__call__).parameters
        for name, value in self.given.items():
            given[name] = value
            if value is None:
                continue
            if starts_from_images and name in IMAGES:
                given[name] = _one_each(value, count)[part]
            elif name.removesuffix("_2").endswith(AN_IMAGE_EACH) and len(value) == count:
                given[name] = value[part]
        return given


def _one_each(image: Any, count: int) -> Any:
    """Returns an image for each of some rows, from one image or one for each row.

    Pipelines encode one image with the noise of one row, and images with the noise of their own.
    """
    if isinstance(image, (Tensor, np.ndarray)) and image.ndim == 4:
        image = list(image)
    images = image if isinstance(image, list) else [image]
    return images * count if len(images) == 1 else images


def joined(outputs: Sequence[Any]) -> Any:
    """Returns the outputs of several calls as one: lists, arrays and tensors are concatenated."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, np.ndarray):
        return np.concatenate(outputs)
    if isinstance(first, list):
        return [each for output in outputs for each in output]
    if isinstance(first, tuple):
        return tuple(joined(each) for each in zip(*outputs, strict=True))
    if first is None:
        return None
    names = vars(first)
    return type(first)(**{name: joined([getattr(o, name) for o in outputs]) for name in names})
