import copy

import pytest
import torch
from torch import nn

from fastrepulse import models
from fastrepulse.layers.linears import linear, onednn_linears
from helpers.tolerances import AGAINST_FLOAT64, SAME_COMPUTATION


@pytest.fixture(scope="module")
def unet():
    return copy.deepcopy(models.load_model().unet)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "out"),
    [(1, 1, 1, 1), (3, 7, 5, 11), (2, 256, 64, 512), (2, 77, 128, 64)],
    ids=lambda size: str(size),
)
def test_linear_is_that_of_torch(batch, tokens, width, out, bias):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(width, out, bias)
    x = torch.randn(tokens, batch, width, generator=generator).transpose(0, 1)
    expected = nn.functional.linear(x.double(), layer.weight.double(), _double(layer.bias))
    with torch.no_grad():
        got = linear(x, layer.weight, layer.bias)
        torch.library.opcheck(linear, (x, layer.weight.detach(), layer.bias))
    rtol, atol = AGAINST_FLOAT64[torch.float32]
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=atol)
    assert got.is_contiguous()


def _double(bias):
    return None if bias is None else bias.double()


@torch.no_grad()
def test_a_unets_linear_layers_are_exchanged_for_a_while(unet):
    kinds = [type(module) for module in unet.modules()]
    inputs = torch.randn(2, 4, 16, 16), torch.tensor(500), torch.randn(2, 77, 128)
    before = unet(*inputs).sample
    with onednn_linears(unet), torch.profiler.profile() as profile:
        during = unet(*inputs).sample
    torch.testing.assert_close(during, before, rtol=SAME_COMPUTATION[0], atol=SAME_COMPUTATION[1])
    assert [type(module) for module in unet.modules()] == kinds
    assert any(event.key == "fastrepulse::linear" for event in profile.key_averages())


def test_where_gradients_are_asked_for_they_flow(unet):
    latents = torch.randn(1, 4, 16, 16, requires_grad=True)
    with onednn_linears(unet):
        unet(latents, torch.tensor(500), torch.randn(1, 77, 128)).sample.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_layers_are_put_back_when_something_fails(unet):
    with pytest.raises(RuntimeError, match="stopped"), onednn_linears(unet):
        raise RuntimeError("stopped")
    assert sum(type(module) is nn.Linear for module in unet.modules()) > 10


@torch.no_grad()
def test_other_dtypes_keep_torchs_own(unet):
    half = copy.deepcopy(unet).to(torch.bfloat16)
    with onednn_linears(half):
        assert sum(type(module) is nn.Linear for module in half.modules()) > 10
