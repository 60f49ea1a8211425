"""`repel()`: the push, the pause of guidance and the restart in any image pipeline of diffusers."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch

from fastrepulse.checks import check_count
from fastrepulse.integrations.call import Call, check_pipeline
from fastrepulse.integrations.functional import check_group_size
from fastrepulse.integrations.micro_batches import MicroBatches, joined
from fastrepulse.integrations.parts import repelling
from fastrepulse.integrations.pipeline_run import How, PipelineRun
from fastrepulse.methods.repulsion import Repulsion


def repel(
    pipe: Any,
    repulsion: Repulsion | str = Repulsion(),  # noqa: B008  frozen
    *,
    group_size: int | None = None,
    latent_size: tuple[int, int] | None = None,
    seed: int | None = None,
) -> "Repelled":
    """Lets the images of each call of a diffusers pipeline repel each other.

        with repel(pipe):
            pipe("a potted plant", num_images_per_prompt=16)

        repel(pipe)("a potted plant", num_images_per_prompt=16)  # the same

    The push, the pause of guidance and the restart are those of `fastrepulse.sample`, by the same
    rule, and the images are the same for the same initial latents. Afterwards the pipeline is as it
    was.

    Args:
        pipe: A pipeline of diffusers that draws images with a UNet or a transformer. Pipelines for
            videos and sound are refused, and those that compute three predictions a step.
        repulsion: A `Repulsion`, or the name of an embedding.
        group_size: Number of neighbours in the batch that belong to one prompt; by default
            `num_images_per_prompt`, or the whole batch if each prompt has one image.
        latent_size: Height and width in latent positions; by default from the pipeline's call.
        seed: Seed of the restart's noise and of random embeddings; by default that of the call's
            `generator`.

    Returns:
        A context manager, which can also be called as the pipeline.

    Raises:
        ValueError: If the pipeline or its scheduler is of a kind that is refused, repels already,
            or the embedding is unknown.
        TypeError: If the pipeline or the repulsion is something else.
    """
    if isinstance(repulsion, str):
        repulsion = Repulsion(repulsion)
    if not isinstance(repulsion, Repulsion):
        raise TypeError(f"repulsion must be a Repulsion or a name, got {repulsion!r}")
    check_group_size(group_size, repulsion)
    check_pipeline(pipe)
    return Repelled(pipe, How(repulsion, group_size, latent_size, seed))


class Repelled:
    """A pipeline with the repulsion; see `repel`.

    Args:
        pipe: The pipeline.
        how: How its images repel each other.
    """

    def __init__(self, pipe: Any, how: How):
        self.pipe = pipe
        self.how = how

    def __enter__(self) -> Any:
        kind: Any = type(self.pipe)
        if hasattr(kind, "plain_kind"):
            raise ValueError("pipe must be a plain one, got one that repels already")
        # Python looks for __call__ in the class alone
        self.pipe.__class__ = _repelling_kind(kind, self.how)
        return self.pipe

    def __exit__(self, *error: object) -> None:
        self.pipe.__class__ = self.pipe.plain_kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the pipeline with the repulsion."""
        with self as pipe:
            return pipe(*args, **kwargs)

    def sample(
        self,
        prompt: str | Sequence[str] | None,
        num_images: int = 16,
        *,
        micro_batch_size: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: bool = True,
        **given: Any,
    ) -> Any:
        """Draws images in micro-batches, all of which repel each other.

            repel(pipe).sample("a potted plant", 64, micro_batch_size=4)

        The pipeline is called once a micro-batch, and the calls go in lockstep: each waits at the
        steps that are pushed until the others have arrived. So memory is that of one micro-batch
        and of all latents, and the images depend on the micro-batches by rounding only.

        Args:
            prompt: What to draw; None for text embeddings. With several prompts, one after the
                other gets `num_images`.
            num_images: Number of images of each prompt.
            micro_batch_size: Number of images in one call of the pipeline, by default all.
            generator: Draws the seed of each image; or one generator for each image.
            progress: Whether to show a progress bar, which counts images.
            given: The other arguments of the pipeline. Latents and text embeddings may have a row
                for each image.

        Returns:
            The pipeline's output for all images.

        Raises:
            ValueError: If an argument is out of range; names it and what is accepted.
            TypeError: If an argument has a wrong type.
        """
        check_count("num_images", num_images)
        size = num_images if micro_batch_size is None else micro_batch_size
        check_count("micro_batch_size", size)
        pipe, how = copy.copy(self.pipe), self.how
        pipe.__class__ = getattr(type(pipe), "plain_kind", type(pipe))
        if how.group_size is not None:
            raise ValueError(f"group_size must be None for sample, got {how.group_size}")
        if num_images < 2 and not how.repulsion.acts_on_one:
            _warn_of_one()
            how = replace(how, repulsion=replace(how.repulsion, strength=0))
        generators = _generator_each(generator, num_images)
        if how.seed is None:
            how = replace(how, seed=generators[0].initial_seed() % 2**63)
        outputs = [
            MicroBatches(
                pipe, how, each, [one.clone_state() for one in generators], size, given, progress
            ).draw()[0]
            for each in ([prompt] if prompt is None or isinstance(prompt, str) else prompt)
        ]
        return joined(outputs)


def _repelling_kind(kind: Any, how: How) -> type:
    """Returns the class of a pipeline that repels."""

    @wraps(kind.__call__)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        run = PipelineRun(Call.of(pipe, inspect.signature(kind.__call__), *args, **kwargs), how)
        if run.group_size < 2 and not how.repulsion.acts_on_one:
            _warn_of_one()
            return kind.__call__(pipe, *args, **kwargs)
        with repelling(pipe, run):
            return kind.__call__(pipe, *args, **kwargs)

    # diffusers saves a pipeline under the name and module of its class
    members = {"__module__": kind.__module__, "__call__": call, "plain_kind": kind}
    return type(kind.__name__, (kind,), members)


def _warn_of_one() -> None:
    warnings.warn("a batch of one has nothing to repel from, so there is no push", stacklevel=3)


def _generator_each(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator]:
    """Returns a generator for each image."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(f"generator must be one or {count}, got {len(generator)}")
        return list(generator)
    device = None if generator is None else generator.device
    seeds = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
