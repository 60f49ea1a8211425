import copy
from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, group_norm, silu

from fastrepulse import models
from fastrepulse.layers.activations import fused_activations, geglu, group_norm_silu
from helpers import cpu_variants
from helpers.cpu_variants import CAPABILITIES, run_with
from helpers.tolerances import AGAINST_FLOAT64, SAME_COMPUTATION

rtol, atol = AGAINST_FLOAT64[torch.float32]
close = partial(torch.testing.assert_close, rtol=rtol, atol=atol)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def geglu_reference(x):
    values, gates = x.double().chunk(2, dim=-1)
    return values * gelu(gates)


def norm_reference(x, shift, groups, weight, bias, eps):
    x, weight, bias = x.double(), weight.double(), bias.double()
    if shift is not None:
        x = x + shift.double()[:, :, None, None]
    return silu(group_norm(x, groups, weight, bias, eps))


SHAPES = [(1, 1, 32), (3, 7, 64), (2, 256, 1024), (5, 3, 48), (2, 9, 20)]


def check_geglu():
    for shape in SHAPES:
        for scale in (1e-3, 1.0, 30.0):
            x = scale * draw(*shape)
            close(geglu(x).double(), geglu_reference(x))
    far = torch.cat([torch.ones(1, 16), torch.linspace(-200, 200, 16)[None]], dim=1)
    close(geglu(far).double(), geglu_reference(far))
    assert geglu(torch.full((1, 32), torch.nan)).isnan().all()


NORMS = [
    pytest.param(2, 64, 16, 16, 32, id="groups-of-two"),
    pytest.param(1, 48, 5, 7, 3, id="odd-picture"),
    pytest.param(3, 16, 1, 1, 1, id="a-pixel"),
    pytest.param(1, 32, 40, 33, 32, id="chunks"),
    pytest.param(4, 12, 3, 3, 4, id="channels-of-another-number"),
]


def check_group_norm_silu(batch, channels, height, width, groups):
    weight, bias = draw(channels, seed=1), draw(channels, seed=2)
    for shift in (None, draw(batch, channels, seed=3)):
        # Far from zero torch itself, which serves other numbers of channels, loses digits
        for offset in (0.0, 50.0)[: 1 if channels % 16 else 2]:
            x = draw(batch, channels, height, width) + offset
            for laid_out in (x, x.contiguous(memory_format=torch.channels_last)):
                given = laid_out, shift, groups, weight, bias, 1e-5
                got = group_norm_silu(*given)
                # Where all is the same the epsilon alone divides the rounding of large numbers
                loose = 1.0 if offset == 0 or height * width > 1 else 200.0
                torch.testing.assert_close(
                    got.double(), norm_reference(*given), rtol=rtol, atol=loose * atol
                )
                assert got.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_geglu_against_float64():
    check_geglu()
    torch.library.opcheck(geglu, (draw(2, 3, 64),))


@torch.no_grad()
@pytest.mark.parametrize(("batch", "channels", "height", "width", "groups"), NORMS)
@pytest.mark.parametrize("threads", [1, 3])
def test_group_norm_silu_against_float64(batch, channels, height, width, groups, threads):
    with cpu_variants.threads(threads):
        check_group_norm_silu(batch, channels, height, width, groups)


def test_group_norm_silu_is_an_operator():
    given = draw(2, 32, 3, 3), draw(2, 32), 4, draw(32), draw(32), 1e-5
    torch.library.opcheck(group_norm_silu, given)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_on_other_instruction_sets(capability):
    checks = "check_geglu()\n" + "\n".join(
        f"check_group_norm_silu(*{norm.values})" for norm in NORMS
    )
    run_with(capability, __file__, checks)


@pytest.fixture(scope="module", params=["unet", "vae"])
def network(request):
    return copy.deepcopy(getattr(models.load_model(), request.param))


def inputs_of(network, grad=False):
    latents = draw(2, 4, 16, 16).requires_grad_(grad)
    if hasattr(network, "decode"):
        return network.decode, (latents,), latents
    return network, (latents, torch.tensor(500), draw(2, 77, 128)), latents


@torch.no_grad()
def test_a_networks_blocks_are_exchanged_for_a_while(network):
    kinds = [type(module) for module in network.modules()]
    call, inputs, _ = inputs_of(network)
    before = call(*inputs).sample
    with fused_activations(network), torch.profiler.profile() as profile:
        during = call(*inputs).sample
    torch.testing.assert_close(during, before, rtol=SAME_COMPUTATION[0], atol=SAME_COMPUTATION[1])
    assert [type(module) for module in network.modules()] == kinds
    called = {event.key for event in profile.key_averages()}
    assert "fastrepulse::group_norm_silu_kernel" in called
    assert "aten::gelu" not in called


def test_where_gradients_are_asked_for_they_flow(network):
    call, inputs, latents = inputs_of(network, grad=True)
    expected = torch.autograd.grad(call(*inputs).sample.sum(), latents)[0]
    with fused_activations(network):
        gradient = torch.autograd.grad(call(*inputs).sample.sum(), latents)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
