"""The denoise loop on a device: a full-size UNet, and `sample()` beside diffusers' pipeline.

Without diffusers every section yields a row that says it was skipped.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import fastrepulse
from bench.gpu.timing import added_memory, milliseconds, seconds
from bench.sampling.peers import diffusers_pipeline, run_diffusers, stable_diffusion_2
from bench.sampling.shares import shares
from fastrepulse.models import Model, load_model
from fastrepulse.noise import initial_noise
from fastrepulse.sampling.denoiser import Denoiser
from fastrepulse.sampling.output import to_pil

PROMPT = "a potted plant"
COMPILED = (2, 16)
"""Batch sizes at which the compiled UNet is timed too."""

Row = dict[str, Any]


def needs_diffusers(section: Callable[[str, bool], Iterator[Row]]) -> Any:
    """Makes a section yield a "skipped" row if diffusers is not installed."""

    def guarded(device: str, smoke: bool) -> Iterator[Row]:
        if find_spec("diffusers") is None:
            yield {"what": section.__name__, "skipped": "diffusers is not installed"}
        else:
            yield from section(device, smoke)

    return guarded


@cache
def full_size(device: str, smoke: bool) -> Model:
    """Returns a random float16 model of Stable Diffusion 2's size, or the shipped one for `smoke`.

    It is cached, because drawing its weights takes a minute.
    """
    return load_model(device=device) if smoke else stable_diffusion_2(device, torch.float16)


def one_level(device: str) -> Model:
    """Returns the shipped model with a random UNet of one level, which compiles in seconds."""
    model = load_model(device=device)
    config = {**model.unet.config, "block_out_channels": (32,), "layers_per_block": 1}
    config |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    config |= {"mid_block_type": None, "attention_head_dim": 4}
    unet = type(model.unet).from_config(config).to(device).eval()
    return replace(model, unet=unet, forwards={})


def one_pass(model: Model, batch: int, compiled: bool) -> tuple[Denoiser, Callable[[], Tensor]]:
    """Returns a denoiser, and a function that runs one guided forward pass of a batch."""
    text, negative = (model.encode_prompts([words]).to(model.dtype) for words in (PROMPT, ""))
    denoise = Denoiser(model.unet, text, negative, 5.0, batch, compiled)
    latents = torch.randn(batch, *model.latent_shape(None, None), device=model.device)
    tokens = text.tokens.expand(batch, -1, -1)
    prompts = torch.zeros(batch, dtype=torch.long, device=model.device)
    timestep = torch.tensor(500.0)
    return denoise, lambda: denoise(latents, timestep, tokens, prompts)


@needs_diffusers
def unet(device: str, smoke: bool) -> Iterator[Row]:
    """Times a guided pass of the UNet; counts the passes after which compiling pays off."""
    model = one_level(device) if smoke else full_size(device, smoke)
    for batch in (2,) if smoke else (2, 16, 1, 4, 8, 32):
        plain = None
        for compiled in (False, True) if batch in COMPILED else (False,):
            _, call = one_pass(model, batch, compiled)
            first = seconds(call, device)
            with added_memory(device) as added:
                ms, spread = milliseconds(call, device)
            row = {"what": "unet", "batch": batch, "compiled": compiled, "first s": first}
            yield {**row, "ms": ms, "spread": spread, "ms/particle": ms / batch, **added}
            if plain is None:
                plain = first, ms
            else:
                gained = plain[1] - ms
                passes = 1000 * (first - plain[0]) / gained if gained > 0 else "never"
                yield {"what": "compiling repaid", "batch": batch, "passes": passes}


@needs_diffusers
def recovery(device: str, smoke: bool) -> Iterator[Row]:
    """Runs out of memory in a compiled UNet, and checks that the micro-batch is halved."""
    if device != "cuda":
        yield {"what": "recovery", "skipped": "needs a GPU"}
        return
    # The shipped model is small, and every halving compiles again
    model, asked = load_model(device=device), 1024
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1e9) / total)
    try:
        denoise, call = one_pass(model, asked, True)
        finite = bool(call().isfinite().all())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    row = {"what": "recovery", "compiled": denoise.compiled, "finite": finite}
    yield {**row, "asked": asked, "in the end": denoise.micro_batch_size}


@contextmanager
def counted_waits(device: str) -> Iterator[dict[str, int]]:
    """Yields a dictionary that gets "waits", how often the host waited for the GPU."""
    counted: dict[str, int] = {}
    if device != "cuda":
        yield counted
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counted
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counted["waits"] = sum("synchronizing" in str(warning.message) for warning in caught)


def runs_of(
    what: str, model: Model, with_diffusers: bool, sizes: list[tuple[int, int]]
) -> Iterator[Row]:
    """Runs each variant twice; the waits are counted in the first run, the second is timed."""
    device = model.device.type
    ours = partial(fastrepulse.sample, PROMPT, model=model, seed=0, progress=False, compile=False)
    for n, steps in sizes:
        variants = {
            "independent": partial(ours, n, repulsion=None, num_inference_steps=steps),
            "repelled": partial(ours, n, num_inference_steps=steps),
        }
        if with_diffusers:
            latents = initial_noise(0, n, model.latent_shape(None, None)).to(device, model.dtype)
            pipeline = diffusers_pipeline(model)
            variants["diffusers"] = partial(run_diffusers, pipeline, PROMPT, latents, steps)
        for name, call in variants.items():
            row = {"what": "sample", "model": what, "provider": name, "N": n, "T": steps}
            with counted_waits(device) as waits:
                first = seconds(call, device)
            with added_memory(device) as added:
                second = seconds(call, device)
            row |= {"first s": first, "second s": second, "pictures/s": n / second}
            yield {**row, **waits, **added}
        parts = {f"{part}, s": seconds for part, seconds in shares(model, n, 2).items()}
        yield {"what": "step", "of": what, "N": n, **parts}


@needs_diffusers
def sampling(device: str, smoke: bool) -> Iterator[Row]:
    """Times `sample()`, and decoding and PNG compression on their own."""
    model = full_size(device, smoke)
    sizes = [(2, 2)] if smoke else [(16, 25), (64, 10)]
    yield from runs_of("shipped" if smoke else "Stable Diffusion 2's size", model, True, sizes)
    latents = torch.randn(4, *model.latent_shape(None, None), device=device)
    ms, _ = milliseconds(lambda: model.decode(latents), device)
    yield {"what": "picture, ms", "part": "decoded", "ms": ms / len(latents)}
    (picture,) = to_pil(model.decode(latents[:1]))
    ms, _ = milliseconds(lambda: picture.save(io.BytesIO(), "png"), "cpu")
    yield {"what": "picture, ms", "part": "as PNG", "ms": ms}
    if not smoke:
        shipped = load_model(device=device)
        yield from runs_of("shipped", shipped, True, [(64, 25)])
        yield from runs_of("shipped", shipped, False, [(4096, 10)])
