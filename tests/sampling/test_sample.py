"""The sampler on the shipped model: equal to diffusers without repulsion, and as promised with."""

import json
import math
import shutil
import weakref

import numpy as np
import pytest
import torch
from tolerances import SAME_COMPUTATION

import fastrepulse
from fastrepulse import Correction, Repulsion, embeddings, models
from fastrepulse.methods import ParticleGuidance
from fastrepulse.methods.base import Method, Particles
from fastrepulse.models.text import Text
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.denoiser import Denoiser, repays_compiling
from fastrepulse.sampling.memory import free_memory

PROMPT = "a potted plant"
STEPS = 6


def draw(**arguments):
    settings = {"num_particles": 6, "num_inference_steps": STEPS, "seed": 0, "progress": False}
    return fastrepulse.sample(PROMPT, **{**settings, **arguments})


def mean_distance(latents, embedding="pooled"):
    return torch.pdist(embeddings.build(embedding)(latents)).mean().item()


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(
        models.DEFAULT_MODEL, torch_dtype=torch.float32
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def as_diffusers(pipeline, latents, scheduler, **arguments):
    import diffusers

    kind = getattr(diffusers, models.SCHEDULERS[scheduler])
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    arguments = {"guidance_scale": 5.0, "num_inference_steps": STEPS, **arguments}
    count = len(latents)
    return (
        pipeline(
            PROMPT, num_images_per_prompt=count, latents=latents, output_type="latent", **arguments
        ).images
        / 1.0
    )


@pytest.mark.parametrize("scheduler", models.SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_without_repulsion_it_is_diffusers_pipeline(pipeline, scheduler, guidance_scale):
    latents = initial_noise(0, 3, (4, 16, 16))
    expected = as_diffusers(pipeline, latents.clone(), scheduler, guidance_scale=guidance_scale)
    result = draw(
        num_particles=3, repulsion=None, scheduler=scheduler, guidance_scale=guidance_scale
    )
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(result.latents, expected, rtol=rtol, atol=atol)


def test_a_negative_prompt_and_another_size_are_diffusers_too(pipeline):
    latents = initial_noise(4, 2, (4, 20, 12))
    expected = as_diffusers(
        pipeline, latents.clone(), "euler", negative_prompt="a planet", height=80, width=48
    )
    result = draw(
        num_particles=2, seed=4, repulsion=None, negative_prompt="a planet", height=80, width=48
    )
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(result.latents, expected, rtol=rtol, atol=atol)
    assert result.images[0].size == (48, 80)


@pytest.mark.parametrize("scheduler", models.SCHEDULERS)
@pytest.mark.parametrize("embedding", ["channel_mean", "halves", "thirds", "pooled"])
def test_repulsion_moves_particles_apart_and_attraction_together(embedding, scheduler):
    strength = 1.0
    distance = {
        sign: mean_distance(
            draw(
                repulsion=Repulsion(
                    embedding, sign * strength, on="denoised", window=(math.inf, 1.5), pause=None
                ),
                scheduler=scheduler,
            ).latents,
            embedding,
        )
        for sign in (-1, 0, 1)
    }
    assert distance[-1] < distance[0] < distance[1]


def test_repulsion_on_noisy_latents_moves_particles_apart():
    how = {"on": "noisy", "window": (math.inf, 1.5), "pause": None}
    apart, alone = (draw(repulsion=Repulsion("thirds", s, **how)).latents for s in (0.3, 0.0))
    assert mean_distance(apart, "thirds") > mean_distance(alone, "thirds")


@pytest.mark.parametrize("embedding", ["random_cnn", "latent"])
def test_the_other_embeddings_change_the_result(embedding):
    apart, alone = (
        draw(repulsion=Repulsion(embedding, s, restart=None)).latents for s in (9.0, 0.0)
    )
    assert (apart - alone).abs().max() > 1e-3
    assert mean_distance(apart, "latent") > mean_distance(alone, "latent")


def test_strength_zero_measures_and_changes_nothing():
    off, measured = draw(repulsion=None), draw(repulsion=Repulsion(strength=0.0))
    assert torch.equal(off.latents, measured.latents)
    assert all(math.isnan(step.bandwidth) for step in off.diagnostics)
    assert all(step.bandwidth > 0 and step.force_norm > 0 for step in measured.diagnostics)


def test_outside_its_window_the_repulsion_does_nothing():
    off = draw(repulsion=None)
    outside = draw(repulsion=Repulsion(strength=50.0, window=(1e9, 1e6), pause=None, restart=None))
    assert torch.equal(off.latents, outside.latents)


def test_noise_of_a_particle_depends_on_seed_and_index_alone():
    few, many = initial_noise(7, 3, (4, 16, 16)), initial_noise(7, 40, (4, 16, 16))
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, initial_noise(8, 3, (4, 16, 16)))
    assert many.mean().abs() < 0.02 and abs(many.std() - 1) < 0.02
    correlation = torch.corrcoef(many.flatten(1)) - torch.eye(40)
    assert correlation.abs().max() < 0.2


def test_the_micro_batch_size_does_not_matter():
    rtol, atol = SAME_COMPUTATION
    # random_cnn's gradient jumps where a feature changes its sign; from this seed none is near 0
    whole = draw(seed=1)
    for size in (1, 4):
        split = draw(seed=1, micro_batch_size=size)
        torch.testing.assert_close(split.latents, whole.latents, rtol=rtol, atol=10 * atol)


def test_compiling_does_not_matter_and_makes_two_graphs():
    from torch._dynamo.utils import counters

    rtol, atol = SAME_COMPUTATION
    plain = draw(num_particles=5, micro_batch_size=2, num_inference_steps=3, compile=False)
    torch._dynamo.reset()
    counters.clear()
    for n in (5, 3):
        compiled = draw(num_particles=n, micro_batch_size=2, num_inference_steps=3, compile=True)
        if n == 5:
            torch.testing.assert_close(compiled.latents, plain.latents, rtol=rtol, atol=10 * atol)
    # With guidance, and without while it pauses
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_the_attention_backend_does_not_matter():
    rtol, atol = SAME_COMPUTATION
    default, *others = (draw(seed=1, attention=a).latents for a in ("auto", "sdpa", "math"))
    for other in others:
        torch.testing.assert_close(other, default, rtol=rtol, atol=10 * atol)
    assert torch.equal(draw(seed=1).latents, default)


def test_short_runs_are_not_compiled():
    assert not repays_compiling(16, 25, 16) and repays_compiling(1000, 25, 32)


def test_outside_the_guidance_window_there_is_no_guidance():
    rtol, atol = SAME_COMPUTATION
    never = draw(repulsion=None, guidance_window=(1e9, 1e8)).latents
    unguided = draw(repulsion=None, guidance_scale=1.0).latents
    torch.testing.assert_close(never, unguided, rtol=rtol, atol=10 * atol)
    late = draw(repulsion=None, guidance_window=(3.0, 0.0)).latents
    assert not torch.allclose(late, never)
    assert not torch.allclose(late, draw(repulsion=None).latents)


def test_guidance_pauses_where_the_repulsion_says_so():
    rtol, atol = SAME_COMPUTATION
    push, everywhere = {"strength": 1e-9, "restart": None}, (math.inf, 0.0)
    plain, paused, unguided = (
        draw(repulsion=Repulsion(**push, pause=None), **how).latents
        if pause is None
        else draw(repulsion=Repulsion(**push, pause=pause), **how).latents
        for pause, how in ((None, {}), (everywhere, {}), (None, {"guidance_scale": 1.0}))
    )
    torch.testing.assert_close(paused, unguided, rtol=rtol, atol=10 * atol)
    assert not torch.allclose(paused, plain)
    # Nothing pauses where there is no push, or one that attracts
    assert all(Repulsion(strength=s).guides(5.0) for s in (0.0, -1.0))
    assert not Repulsion().guides(5.0) and Repulsion().guides(11.0) and Repulsion().guides(0.2)


def test_a_micro_batch_that_runs_out_of_memory_is_halved():
    allocated = []

    class Small(torch.nn.Module):
        device = torch.device("cpu")
        dtype = torch.float32

        def forward(self, latents, timestep, encoder_hidden_states, return_dict):
            held = torch.empty(1)
            allocated.append(weakref.ref(held))
            if len(latents) > 3:
                raise torch.OutOfMemoryError
            # What failed passes had allocated is free again
            assert [other() is held for other in allocated if other() is not None] == [True]
            return (latents * encoder_hidden_states[:, :1, :1, None],)

    text = torch.arange(1.0, 3.0).view(2, 1, 1)
    denoise = Denoiser(Small(), Text(text), None, 1.0, micro_batch_size=8, compiled=False)
    prompts = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    latents = torch.randn(7, 4, 2, 2)
    output = denoise(latents, torch.tensor(1.0), text[prompts], prompts)
    torch.testing.assert_close(output, latents * (prompts + 1)[:, None, None, None])
    assert denoise.micro_batch_size == 2


def test_pictures_go_straight_to_a_folder(tmp_path):
    settings = {"num_particles": 3, "num_inference_steps": 2}
    saved, held = draw(out=tmp_path / "a" / "b", **settings), draw(**settings)
    assert len(saved.images) == 3 and len(saved.images[1:]) == 2
    for one, other in zip(saved.images, held.images, strict=True):
        assert one.tobytes() == other.tobytes()
    assert {f.name for f in (tmp_path / "a" / "b").iterdir()} == {
        *(f"0000{i}.png" for i in range(3)),
        "grid.png",
        "sample.json",
    }


def test_a_full_disk_is_reported_before_the_first_step(tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="room for 0 MB"):
        draw(out=tmp_path / "out", progress=True)
    assert "denoise" not in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_operator_calls_do_not_grow_with_particles():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            self.calls += 1
            return function(*arguments, **(named or {}))

    calls = []
    for n in (4, 12):
        latents = initial_noise(0, n, (4, 16, 16))
        particles = Particles(
            latents, latents.__getitem__, 5.0, 4.5, 0, False, n, 0, micro_batch_size=n
        )
        with Count() as count:
            push = Repulsion("random_cnn").push(particles)
            push.change(slice(0, n))
        calls.append(count.calls)
    assert calls[0] == calls[1]


def test_independent_particles_do_not_know_of_each_other():
    rtol, atol = SAME_COMPUTATION
    few, many = draw(num_particles=2, repulsion=None), draw(num_particles=5, repulsion=None)
    torch.testing.assert_close(few.latents, many.latents[:2], rtol=rtol, atol=10 * atol)


def test_several_prompts_repel_only_within_their_prompt():
    rtol, atol = SAME_COMPUTATION
    settings = {"num_inference_steps": STEPS, "seed": 0, "progress": False}
    both = fastrepulse.sample([PROMPT, "a planet"], 3, **settings)
    alone = [fastrepulse.sample(p, 3, **settings).latents for p in (PROMPT, "a planet")]
    assert len(both.images) == 6
    torch.testing.assert_close(both.latents, torch.cat(alone), rtol=rtol, atol=10 * atol)


def test_one_particle_is_sampled_alone():
    assert torch.equal(draw(num_particles=1).latents, draw(num_particles=1, repulsion=None).latents)


def test_seeds_generators_and_latents():
    first, again = (
        draw(seed=None, generator=torch.Generator().manual_seed(5)).latents for _ in range(2)
    )
    assert torch.equal(first, again)
    given = draw(latents=initial_noise(0, 6, (4, 16, 16)))
    assert torch.equal(given.latents, draw().latents)
    unseeded = draw(seed=None)
    assert torch.equal(draw(seed=unseeded.settings["seed"]).latents, unseeded.latents)


def test_diagnostics_have_one_entry_a_step():
    result = draw(repulsion=Repulsion(restart=None))
    assert len(result.diagnostics) == STEPS
    sigmas = [step.sigma for step in result.diagnostics]
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(step.score_norm > 0 for step in result.diagnostics)
    assert all(step.mean_pairwise_distance > 0 for step in result.diagnostics)


def test_an_embedding_has_a_strength_of_its_own():
    assert draw(repulsion="thirds", num_inference_steps=1).settings["repulsion"]["strength"] == 0.4
    assert Repulsion().strength == 0.4 and Repulsion("random_cnn").strength == 1.0
    assert Repulsion(embeddings.Gram("style_classifier")).strength == 0.4
    assert Repulsion(lambda z: z.flatten(1)).strength == 0.4
    assert Repulsion("thirds", 0).strength == 0


def test_settings_of_any_kind_of_number_are_plain_ones(tmp_path):
    method = ParticleGuidance(np.float32(30), window=(torch.tensor(9.0).item(), np.float64(1)))
    result = draw(repulsion=method, shared_until=np.float32(5), out=tmp_path / "out")
    assert result.settings["repulsion"]["strength"] == 30
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["settings"] == result.settings


def test_settings_that_json_cannot_hold_are_named_before_the_first_step(tmp_path):
    class Mine(Method):
        def push(self, particles):
            raise AssertionError("a step was taken")

        def settings(self):
            return {"set": {1, 2}}

    with pytest.raises(TypeError, match=r"settings must be what JSON can hold, got \{1, 2\}"):
        draw(repulsion=Mine(), out=tmp_path / "out")
    with pytest.raises(TypeError, match=r"window must be two noise levels .* got \(None, 1.5\)"):
        Repulsion(window=(None, 1.5))


def test_pictures_of_another_run_are_not_written_over(tmp_path):
    first = draw(num_particles=2, num_inference_steps=1, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="out must be a new folder"):
        draw(num_particles=1, num_inference_steps=1, seed=1, out=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(first.images) == 2


def test_values_that_are_not_finite_are_caught_where_they_arise():
    noise = initial_noise(0, 6, (4, 16, 16))
    noise[4, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"model's output .* step 0, particle 4"):
        draw(latents=noise)
    with pytest.raises(FloatingPointError, match=r"embedding is not finite at step 0, particle 0"):
        draw(repulsion=Repulsion(lambda x: x.flatten(1) / 0))
    with pytest.raises(FloatingPointError, match=r"repulsion is not finite at step 0"):
        draw(repulsion=Repulsion(lambda x: (x.flatten(1) * 0).sqrt() + x.mean((1, 2, 3))[:, None]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_float32(dtype):
    low, full = (draw(dtype=d, repulsion=Repulsion("channel_mean")) for d in (dtype, None))
    # The UNet alone runs in half
    assert low.latents.dtype == torch.float32
    error = (low.latents.float() - full.latents).square().mean().sqrt()
    assert error < 0.25 * full.latents.std()


def overflow(module, inputs, output):
    return output * math.nan if output.dtype == torch.float16 else output


def test_a_decoder_that_overflows_in_half_precision_decodes_in_float32(caplog):
    model = models.load_model(dtype=torch.float16)
    settings = {"model": model, "num_particles": 2, "num_inference_steps": 2}
    expected = draw(**settings).images
    handle = model.vae.decoder.conv_out.register_forward_hook(overflow)
    try:
        pictures = draw(**settings).images
    finally:
        handle.remove()
    assert "float32" in caplog.text and model.vae.dtype == torch.float16
    for picture, other in zip(pictures, expected, strict=True):
        assert np.abs(np.asarray(picture, float) - np.asarray(other, float)).max() <= 6


def test_memory_that_pytorch_only_caches_is_free(monkeypatch):
    sizes = {"mem_get_info": (3, 99), "memory_reserved": 20, "memory_allocated": 12}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert free_memory(torch.device("cuda")) == 3 + 20 - 12


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"num_particles": 0}, ValueError, "num_particles must be at least 1, got 0"),
        ({"num_particles": 2.5}, TypeError, "num_particles must be an int, got 2.5"),
        ({"num_inference_steps": -3}, ValueError, "num_inference_steps .* got -3"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size .* got 0"),
        ({"prompt": []}, ValueError, "prompt .* empty list"),
        ({"prompt": ["a", 3]}, TypeError, "prompt .* got .'a', 3"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale .* nan"),
        ({"guidance_scale": "5"}, TypeError, "guidance_scale must be a number, got '5'"),
        ({"latents": [1.0]}, TypeError, "latents must be a tensor"),
        ({"generator": 1}, TypeError, "generator must be a torch.Generator or None, got 1"),
        ({"scheduler": "heun"}, ValueError, "scheduler must be one of euler, .* 'heun'"),
        ({"repulsion": "colour"}, ValueError, "repulsion, .*, must be one of .* 'colour'"),
        ({"repulsion": 3}, TypeError, "repulsion must be .* 3"),
        ({"seed": -1}, ValueError, "seed .* -1"),
        ({"seed": "x"}, TypeError, "seed .* 'x'"),
        ({"num_inference_steps": 1001}, ValueError, "num_inference_steps must be below 1000"),
        ({"prompt": None}, TypeError, "prompt .* got None"),
        (
            {"negative_prompt": None},
            TypeError,
            "negative_prompt must be a string or a list of strings, got None",
        ),
        ({"height": "64"}, TypeError, "height must be an int or None, got '64'"),
        ({"height": 30}, ValueError, "height must be a positive multiple of 4, got 30"),
        ({"latents": torch.zeros(2, 4, 16, 16)}, ValueError, r"latents must be \[6, 4, 16, 16\]"),
        ({"guidance_window": (1, 2)}, ValueError, "guidance_window must be two noise levels"),
        ({"compile": "maybe"}, ValueError, "compile must be 'auto', True or False, got 'maybe'"),
        ({"attention": "flash"}, ValueError, "attention must be one of auto, .* got 'flash'"),
        ({"attention": "xformers"}, ValueError, "attention must be available, got 'xformers'"),
        ({"out": "/dev/null/x"}, NotADirectoryError, "out must be a folder"),
        ({"corrections": Correction()}, TypeError, "corrections must be a sequence"),
        ({"dtype": "float16"}, TypeError, "dtype must be a torch.dtype or None, got 'float16'"),
        ({"model": "no-such-folder"}, FileNotFoundError, "no-such-folder"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    arguments = {"prompt": PROMPT, "num_particles": 6, **arguments}
    with pytest.raises(error, match=named):
        fastrepulse.sample(**arguments, progress=False)
