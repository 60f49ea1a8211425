"""The repulsion in pipelines of many families: real classes, small random weights."""

import math

import pytest
import torch

from fastrepulse import Repulsion, repel
from fastrepulse.schedule import noise_level
from helpers import small_pipelines as small
from helpers.small_transformers import FAMILIES

# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COUNT, STEPS = small.COUNT, 8
PAUSE = (9.0, 0.3)
REPULSION = Repulsion("pooled", 0.5, window=(math.inf, 0.1), pause=PAUSE, restart=None)
RESTARTING = Repulsion("pooled", 0.5, window=(math.inf, 2), pause=(9, 0.3), restart=(1.5, 0.5))
OLDER = [
    (small.stable_diffusion, "euler"),
    (small.stable_diffusion_xl, "dpm++"),
    (small.stable_diffusion_3, "flow-euler"),
    (small.pixart_sigma, "dpm++"),
    (small.controlnet, "ddim"),
]
CASES = [
    *(pytest.param(*case, id=case[0].__name__) for case in OLDER),
    *(pytest.param(family, None, id=family.__name__) for family in FAMILIES),
]


def built(family, short):
    if short:
        return small.made(family, short)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline, call = family()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, call


def generators():
    return [torch.Generator().manual_seed(i) for i in range(COUNT)]


def draw(pipeline, call):
    settings = {"num_images_per_prompt": COUNT, "num_inference_steps": STEPS, **call}
    return pipeline(**settings, generator=generators(), output_type="latent").images


def counting(pipeline):
    """The rows of every batch that goes through a pipeline's model, and its guidance scales."""
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    rows, scales = [], []

    def count(_, args, kwargs):
        rows.append(len(args[0] if args else next(iter(kwargs.values()))))
        scales.append(kwargs.get("guidance"))

    model.register_forward_pre_hook(count, with_kwargs=True)
    return rows, scales


@pytest.mark.parametrize(("family", "short"), CASES)
def test_strength_zero_changes_nothing_a_push_acts_and_the_pause_skips_the_negative_prompt(
    family, short
):
    pipeline, call = built(family, short)
    rows, scales = counting(pipeline)
    alone = draw(pipeline, call)
    all_rows = sum(rows)
    with repel(pipeline, Repulsion(strength=0)):
        assert torch.equal(draw(pipeline, call), alone)
    rows.clear()
    scales.clear()
    with repel(pipeline, REPULSION):
        repelled = draw(pipeline, call)
    assert repelled.isfinite().all() and not torch.allclose(repelled, alone, atol=0.1)
    levels = [noise_level(pipeline.scheduler, step) for step in range(STEPS)]
    paused = [step > 0 and PAUSE[0] >= level >= PAUSE[1] for step, level in enumerate(levels)]
    assert any(paused) and not all(paused)
    if scales[0] is None:
        assert sum(rows) == all_rows - COUNT * sum(paused)
    else:
        assert sum(rows) == all_rows
        assert [bool((scale == 1).all()) for scale in scales] == paused


@pytest.mark.parametrize(("family", "short"), CASES)
def test_micro_batches_of_any_size_draw_the_images_of_one_batch(family, short):
    pipeline, call = built(family, short)
    alone = draw(pipeline, call)
    how = {"num_inference_steps": STEPS, "generator": generators(), "progress": False}
    how |= {name: value for name, value in call.items() if name != "num_images_per_prompt"}

    def sample(repulsion, size):
        repelled = repel(pipeline, repulsion)
        return repelled.sample(
            None, COUNT, micro_batch_size=size, output_type="latent", **how
        ).images

    assert torch.equal(sample(Repulsion(strength=0), COUNT), alone)
    with repel(pipeline, RESTARTING):
        together = draw(pipeline, call)
    assert torch.equal(sample(RESTARTING, COUNT), together)
    assert not torch.allclose(together, alone, atol=0.1)
    for size in (1, 2):
        torch.testing.assert_close(sample(RESTARTING, size), together, rtol=1e-3, atol=1e-3)
