"""Results do not depend on torch's settings in the calling program or on its threads."""

import copy
import gc
import pickle
import threading
import weakref
from contextlib import contextmanager
from functools import cache

import pytest
import torch

import fastrepulse
from fastrepulse import Repulsion, models
from fastrepulse.integrations import RepulsiveScheduler, corrected_denoised
from fastrepulse.layers import accelerated
from fastrepulse.methods.diagnostics import mean_distance
from helpers.small_pipelines import noise, scheduler_of
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION
# Three ways to pull back: autograd, autograd through a Gram matrix, analytic
EMBEDDINGS = ("random_cnn", "gram", "thirds")


@contextmanager
def autocast():
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def inference_mode():
    with torch.inference_mode():
        yield


@contextmanager
def gradients():
    with torch.enable_grad():
        yield


@contextmanager
def default_device():
    # A tensor that is created on this device by mistake has no values
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS = {
    "autocast": autocast,
    "inference_mode": inference_mode,
    "gradients": gradients,
    "default_device": default_device,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


def sampled(embedding="thirds", **how):
    return fastrepulse.sample(
        "a robot",
        2,
        repulsion=Repulsion(embedding, restart=None),
        num_inference_steps=3,
        seed=1,
        height=32,
        width=32,
        progress=False,
        **how,
    ).latents


def repelled(embedding):
    x0, z = noise(0, 3, 4, 16, 16), noise(1, 3, 4, 16, 16)
    return corrected_denoised(x0, z, 5.0, Repulsion(embedding), next_sigma=4.0)


PLAIN = scheduler_of("euler")


def stepped(embedding):
    scheduler = RepulsiveScheduler(PLAIN, embedding)
    scheduler.set_timesteps(5, device="cpu")
    output, sample = noise(0, 3, 4, 16, 16), 10 * noise(1, 3, 4, 16, 16)
    return scheduler.step(output, scheduler.timesteps[0], sample).prev_sample


@cache
def without_settings(compute, embedding):
    return compute(embedding)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("compute", [repelled, stepped, sampled], ids=lambda f: f.__name__)
def test_the_result_does_not_depend_on_the_setting(compute, setting, embedding):
    expected = without_settings(compute, embedding)
    with setting():
        got = compute(embedding)
    assert got.dtype == expected.dtype and not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_model_loaded_in_inference_mode_works_outside_of_it():
    with torch.inference_mode():
        model = models.load_model(dtype=torch.bfloat16)
    assert not any(weight.is_inference() for weight in model.unet.parameters())
    with torch.enable_grad():
        model.vae.decode(torch.randn(1, 4, 4, 4, dtype=torch.bfloat16)).sample.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_user_embedding_may_have_any_dtype(dtype):
    def corner(latents):
        return latents[:, :, :2, :2].flatten(1).to(dtype)

    x0, z = noise(0, 3, 4, 16, 16), noise(1, 3, 4, 16, 16)
    got = corrected_denoised(x0, z, 5.0, Repulsion(corner, 0.4))
    assert got.dtype == x0.dtype
    moved = (got - x0).flatten(2).abs().amax(dim=(0, 1)).view(16, 16) > 0
    assert moved[:2, :2].all() and not moved[2:].any()


def test_threads_use_a_model_one_after_the_other():
    results, errors = {}, []

    def work(number, attention):
        try:
            results[number] = sampled(attention=attention)
        except BaseException as error:
            errors.append(error)

    unet = models.load_model().unet
    before = {name: type(module) for name, module in unet.named_modules()}
    processors = dict(unet.attn_processors)
    kinds = ("auto", "math", "sdpa")
    threads = [threading.Thread(target=work, args=each) for each in enumerate(kinds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for result in results.values():
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)
    assert {name: type(module) for name, module in unet.named_modules()} == before
    assert unet.attn_processors == processors


def test_a_second_thread_waits_for_the_first():
    unet = copy.deepcopy(models.load_model().unet)
    before = dict(unet.attn_processors)
    inside, order = threading.Event(), []

    def second():
        inside.wait()
        with accelerated(unet, "math"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with accelerated(unet, "sdpa"):
        inside.set()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert unet.attn_processors == before


def test_concurrent_threads_load_a_model_once():
    found = []
    wanted = {"dtype": torch.float16}
    threads = [
        threading.Thread(target=lambda: found.append(models.load_model(**wanted))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model) for model in found}) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_wrapped_scheduler_can_be_copied_and_pickled(copied):
    scheduler = RepulsiveScheduler(scheduler_of("dpm++"), "thirds", group_size=3)
    scheduler.set_timesteps(5)
    other = copied(scheduler)
    output, sample = noise(0, 3, 4, 16, 16), 10 * noise(1, 3, 4, 16, 16)
    steps = [each.step(output, each.timesteps[0], sample) for each in (scheduler, other)]
    assert torch.equal(steps[0].prev_sample, steps[1].prev_sample)


def test_a_deleted_model_frees_its_memory():
    model = models.load_model(models.DEFAULT_MODEL, dtype=torch.float64)
    model = models.Model(**{**vars(model), "unet": copy.deepcopy(model.unet), "forwards": {}})
    sampled(model=model)
    freed = weakref.ref(model.unet)
    del model
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("count", [8, 1100], ids=["few", "more-than-a-block"])
def test_distances_far_from_the_origin_are_precise(count):
    near = noise(0, count, 4, 2, 2).flatten(1)
    expected = mean_distance(near.double()).item()
    far = (1000 + 0.01 * near.double()).float()
    assert mean_distance(far).item() == pytest.approx(0.01 * expected, rel=1e-2)
