"""Errors of memory and of the compiler at every stage of a run leave the model as it was."""

import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse import Repulsion, models
from fastrepulse.methods import repulsion
from fastrepulse.models.text import Text
from fastrepulse.sampling import decode as decoding
from fastrepulse.sampling.denoiser import Denoiser
from fastrepulse.sampling.memory import Budget
from fastrepulse.sampling.output import CHECKPOINTS
from helpers.faults import failing
from helpers.tolerances import SAME_COMPUTATION

RTOL, ATOL = SAME_COMPUTATION
ERRORS = [torch.OutOfMemoryError("injected"), MemoryError("injected")]


def draw(**arguments):
    how = {"num_inference_steps": 2, "seed": 3, "progress": False, "micro_batch_size": 1}
    how |= {"height": 32, "width": 32}
    return fastrepulse.sample(["a face", "a robot"], 2, repulsion=METHOD, **{**how, **arguments})


class Corner(torch.nn.Module):
    def forward(self, latents):
        return latents[:, :, 4:8, 4:8].flatten(1)


EMBEDDING = Corner()
METHOD = Repulsion(lambda x: EMBEDDING(x), restart=None)


def scheduler_class():
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler


def state_of(model):
    kinds = [(name, type(module)) for name, module in model.unet.named_modules()]
    kinds += [(name, type(module)) for name, module in model.vae.named_modules()]
    return kinds, dict(model.unet.attn_processors), model.unet.dtype, model.vae.dtype


# Functions that allocate memory: before the end of sampling, and after; with their number of calls
BEFORE = {
    "encode": (lambda: models.load_model().text_encoder, "forward", 2),
    "predict": (lambda: models.load_model().unet, "forward", 8),
    "embed": (lambda: EMBEDDING, "forward", 8),
    "push": (lambda: repulsion, "median_rbf_repulsion", 2),
    "step": (scheduler_class, "step", 8),
}
AFTER = {
    "decode": (lambda: models.load_model().vae, "decode", 4),
    "picture": (lambda: decoding, "save_picture", 4),
    "save": (lambda: Image.Image, "save", 5),
    "summary": (lambda: decoding, "save_summary", 1),
}


def calls(points):
    for name, (owner, function, count) in points.items():
        for after in sorted({0, count // 2, count - 1}):
            yield pytest.param(owner, function, after, id=f"{name}-{after}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return draw(out=tmp_path_factory.mktemp("faults") / "whole")


@pytest.mark.parametrize(("owner", "function", "after"), list(calls(BEFORE)))
def test_after_an_error_the_same_run_gives_the_same_latents(
    owner, function, after, whole, monkeypatch
):
    before = state_of(models.load_model())
    with (
        failing(monkeypatch, owner(), function, ERRORS[0], after),
        pytest.raises(torch.OutOfMemoryError, match="injected"),
    ):
        draw()
    assert state_of(models.load_model()) == before
    assert torch.equal(draw().latents, whole.latents)


@pytest.mark.parametrize(("owner", "function", "after"), list(calls(AFTER)))
def test_an_error_after_sampling_loses_no_latents(
    owner, function, after, whole, monkeypatch, tmp_path
):
    before = state_of(models.load_model())
    monkeypatch.setattr(Budget, "decode_batch_size", lambda _: 1)
    folder = tmp_path / "stopped"
    with (
        failing(monkeypatch, owner(), function, ERRORS[0], after),
        pytest.raises(torch.OutOfMemoryError, match="injected"),
    ):
        draw(out=folder)
    assert list(folder.glob(CHECKPOINTS))
    assert state_of(models.load_model()) == before
    result = fastrepulse.resume(folder, repulsion=METHOD, progress=False)
    for one, other in zip(result.images, whole.images, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("error", ERRORS, ids=["device", "host"])
@pytest.mark.parametrize("after", [0, 1])
def test_running_out_of_memory_once_does_not_change_the_latents(error, after, monkeypatch, caplog):
    expected = draw(micro_batch_size=4).latents
    unet = models.load_model().unet
    with failing(monkeypatch, unet, "forward", error, after, once=True):
        got = draw(micro_batch_size=4).latents
    assert "micro-batches of 2 particles now" in caplog.text
    torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


class Small(torch.nn.Module):
    """Enough of a UNet to be compiled in a second."""

    def __init__(self):
        super().__init__()
        self.conv, self.to_q = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Linear(16, 4)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, latents, timestep, encoder_hidden_states, return_dict):
        text = self.to_q(encoder_hidden_states.mean(dim=1))
        return (self.conv(latents) + text[:, :, None, None] * timestep / 500,)


def denoised(unet, compiled, count, side=8, width=16):
    text = Text(torch.linspace(-1, 1, 5 * width).view(1, 5, width))
    denoise = Denoiser(unet, text, text, 5.0, 2, compiled)
    latents = torch.linspace(-1, 1, count * 4 * side * side).view(count, 4, side, side)
    prompts = torch.zeros(count, dtype=torch.long)
    with torch.no_grad():
        output = denoise(latents, torch.tensor(500.0), text.tokens[prompts], prompts)
    return output, denoise


def test_without_a_compiler_the_model_runs_uncompiled(monkeypatch, caplog):
    from torch._inductor import compile_fx
    from torch._inductor.exc import InvalidCxxCompiler

    unet = Small()
    torch.compiler.reset()
    with failing(monkeypatch, compile_fx, "compile_fx", InvalidCxxCompiler()):
        output, denoise = denoised(unet, True, 3)
    assert not denoise.compiled
    assert "torch cannot compile the UNet, which runs uncompiled" in caplog.text
    assert "InvalidCxxCompiler" in caplog.text
    torch.testing.assert_close(output, denoised(unet, False, 3)[0], rtol=RTOL, atol=ATOL)


def test_errors_of_the_model_are_not_taken_for_compiler_errors():
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        denoised(Small(), True, 2, width=15)


def test_sizes_beyond_the_compile_limit_run_uncompiled(caplog):
    import torch._dynamo.config

    unet = Small()
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        for side, compiled in ((8, True), (16, False)):
            output, denoise = denoised(unet, True, 3, side)
            assert denoise.compiled == compiled, caplog.text
            expected = denoised(unet, False, 3, side)[0]
            torch.testing.assert_close(output, expected, rtol=RTOL, atol=ATOL)


def test_an_adapter_added_between_two_compiled_runs_is_used():
    peft = pytest.importorskip("peft")
    unet = Small()
    before, denoise = denoised(unet, True, 2)
    assert denoise.compiled
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, unet)
    after = denoised(unet, True, 2)[0]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, denoised(unet, False, 2)[0], rtol=RTOL, atol=ATOL)
