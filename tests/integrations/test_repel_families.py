"""The repulsion in pipelines of many families: real classes, small random weights."""

import itertools
import math

import pytest
import torch

from fastrepulse import Repulsion, repel
from fastrepulse.schedule import noise_level
from helpers import small_pipelines as small
from helpers.small_transformers import FAMILIES, flux_with_embedded_guidance

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


def watched(pipeline):
    """The rows, the text embeddings of a row and the guidance scales of each call of the model."""
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    calls = []

    def watch(_, args, kwargs):
        latents = args[0] if args else next(iter(kwargs.values()))
        text = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        calls.append((len(latents), text[0], kwargs.get("guidance")))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    return calls


@pytest.mark.parametrize(("family", "short"), CASES)
def test_strength_zero_changes_nothing_a_push_acts_and_the_pause_asks_for_the_prompt_alone(
    family, short
):
    pipeline, call = built(family, short)
    calls = watched(pipeline)
    alone = draw(pipeline, call)
    all_rows = sum(rows for rows, _, _ in calls)
    with repel(pipeline, Repulsion(strength=0)):
        assert torch.equal(draw(pipeline, call), alone)
    calls.clear()
    with repel(pipeline, REPULSION):
        repelled = draw(pipeline, call)
    assert repelled.isfinite().all() and not torch.allclose(repelled, alone, atol=0.1)
    levels = [noise_level(pipeline.scheduler, step) for step in range(STEPS)]
    paused = [step > 0 and PAUSE[0] >= level >= PAUSE[1] for step, level in enumerate(levels)]
    assert any(paused) and not all(paused)
    if family is flux_with_embedded_guidance:
        assert sum(rows for rows, _, _ in calls) == all_rows
        assert [bool((scale == 1).all()) for _, _, scale in calls] == paused
        return
    assert sum(rows for rows, _, _ in calls) == all_rows - COUNT * sum(paused)
    # Guided steps have two rows an image, or two calls
    per_step = 1 if calls[0][0] == 2 * COUNT else 2
    texts = iter([text for _, text, _ in calls])
    for pausing in paused:
        (text, *_) = itertools.islice(texts, 1 if pausing else per_step)
        if pausing:
            assert torch.equal(text, call["prompt_embeds"][0])


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
