"""`repel()`: the push, the pause of guidance and the restart in any image pipeline of diffusers."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from fastrepulse.integrations.call import Call, check_pipeline, model_name
from fastrepulse.integrations.functional import check_group_size
from fastrepulse.integrations.pause import PausingModel
from fastrepulse.integrations.pipeline_run import How, PipelineRun
from fastrepulse.integrations.restarting import RestartingScheduler
from fastrepulse.integrations.scheduler import repels
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.schedule import check_scheduler


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


def _repelling_kind(kind: Any, how: How) -> type:
    """Returns the class of a pipeline that repels."""

    @wraps(kind.__call__)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        run = PipelineRun(Call.of(pipe, inspect.signature(kind.__call__), *args, **kwargs), how)
        if run.group_size < 2 and not how.repulsion.acts_on_one:
            warnings.warn(
                "a batch of one has nothing to repel from, so there is no push", stacklevel=2
            )
            return kind.__call__(pipe, *args, **kwargs)
        with repelling(pipe, run):
            return kind.__call__(pipe, *args, **kwargs)

    # diffusers saves a pipeline under the name and module of its class
    members = {"__module__": kind.__module__, "__call__": call, "plain_kind": kind}
    return type(kind.__name__, (kind,), members)


@contextmanager
def repelling(pipe: Any, run: PipelineRun) -> Iterator[None]:
    """Gives a pipeline the scheduler and the model of a run."""
    scheduler, model = pipe.scheduler, model_name(pipe)
    if repels(scheduler):
        raise ValueError("scheduler must be a plain one, got one that repels already")
    check_scheduler(scheduler)
    parts = {"scheduler": scheduler, model: getattr(pipe, model)}
    vars(pipe)["scheduler"] = RestartingScheduler(scheduler, run)
    vars(pipe)[model] = PausingModel(parts[model], run)
    try:
        yield
    finally:
        vars(pipe).update(parts)
