import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fastrepulse import models, native
from fastrepulse.layers.convolutions import conv3x3, is_faster, pays, winograd_convolutions
from helpers.cpu_variants import CAPABILITIES, run_with, threads
from helpers.tolerances import AGAINST_FLOAT64, SAME_COMPUTATION, TIMES_DIRECT

CPU = torch.device("cpu")
needs_exchange = pytest.mark.skipif(
    not is_faster(CPU, torch.float32),
    reason="convolutions are only exchanged on processors with AVX2 or AVX-512",
)
LAST = torch.channels_last


def draw(n, c, h, w, o, bias=True, seed=0):
    """Returns images [N, C, H, W], filters [O, C, 3, 3] and a bias [O] or None.

    The filters keep the variance of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator).to(memory_format=LAST)
    weight = torch.randn(o, c, 3, 3, generator=generator).to(memory_format=LAST) / (3 * c**0.5)
    return x, weight, torch.randn(o, generator=generator) if bias else None


def by_hand(x, weight, bias):
    """Returns the sum of the nine shifted products in float64."""
    h, w = x.shape[2:]
    padded = nn.functional.pad(x.double(), (1, 1, 1, 1))
    out = torch.zeros(x.shape[0], weight.shape[0], h, w, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + h, j : j + w]
            out += torch.einsum("nchw,oc->nohw", shifted, weight[:, :, i, j].double())
    return out if bias is None else out + bias.double()[:, None, None]


def assert_matches_definition(x, weight, bias):
    got = conv3x3(x, weight, bias)
    assert got.is_contiguous(memory_format=LAST) and got.dtype == x.dtype
    rtol, atol = AGAINST_FLOAT64[x.dtype]
    torch.testing.assert_close(got.double(), by_hand(x, weight, bias), rtol=rtol, atol=atol)


def test_the_native_library_has_the_kernel():
    assert native.has_kernel("conv3x3_kernel", "cpu")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(
    ("c", "o"),
    [(16, 16), (32, 48), (80, 32), (64, 112), (336, 16), (656, 32)],
    ids=lambda channels: str(channels),
)
@pytest.mark.parametrize(
    ("n", "h", "w"),
    [(1, 1, 1), (1, 4, 4), (3, 2, 5), (2, 8, 8), (1, 13, 6), (5, 9, 23)],
    ids=lambda size: str(size),
)
def test_the_kernel_matches_the_definition(n, h, w, c, o, bias):
    assert_matches_definition(*draw(n, c, h, w, o, bias))


# A thread multiplies blocks of 128 tiles
@pytest.mark.parametrize("tiles", [127, 128, 129, 257, 700], ids=lambda tiles: f"{tiles}-tiles")
def test_incomplete_blocks_of_tiles_match_the_definition(tiles):
    assert_matches_definition(*draw(tiles, 16, 3, 4, 32))


@pytest.mark.parametrize("channels", [64, 320, 1280])
def test_rounding_errors_are_close_to_those_of_pytorch(channels):
    x, weight, _ = draw(4, channels, 16, 16, 64, bias=False)
    exact = by_hand(x, weight, None)
    ours, direct = conv3x3(x, weight, None), torch.conv2d(x, weight, padding=1)
    assert (ours - exact).norm() < TIMES_DIRECT * (direct - exact).norm()


def test_integers_give_integers():
    x, weight, bias = draw(2, 32, 10, 10, 32)
    x, weight, bias = (4 * x).round(), (20 * weight).round(), bias.round()
    torch.testing.assert_close(
        conv3x3(x, weight, bias), by_hand(x, weight, bias).float(), rtol=0, atol=1e-3
    )


def test_strides_do_not_change_the_result():
    x, weight, bias = draw(2, 48, 7, 10, 32)
    expected = conv3x3(x, weight, bias)
    assert torch.equal(conv3x3(x.contiguous(), weight.contiguous(), bias), expected)
    assert torch.equal(conv3x3(x.mT.contiguous().mT, weight, bias), expected)
    wide = torch.cat([x, x], dim=1)
    assert torch.equal(conv3x3(wide[:, 48:], weight, bias), expected)
    twice = torch.stack([bias, bias], dim=1)[:, 0]
    assert torch.equal(conv3x3(x, weight, twice), expected)
    assert torch.equal(conv3x3(x[:1].expand_as(x), weight, bias)[1], expected[0])


def test_nan_spreads_to_its_neighbours_alone():
    x, weight, bias = draw(3, 16, 9, 9, 16)
    expected = conv3x3(x, weight, bias)
    x[1, 5, 4, 4] = torch.nan
    got = conv3x3(x, weight, bias)
    assert got[1, :, 3:6, 3:6].isnan().all()
    assert torch.equal(got[::2], expected[::2])


def test_an_empty_batch_gives_an_empty_result():
    x, weight, bias = draw(0, 16, 9, 9, 32)
    assert conv3x3(x, weight, bias).shape == (0, 32, 9, 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_use_pytorchs_convolution(dtype):
    inputs = [each.to(dtype) for each in draw(2, 16, 6, 5, 32)]
    assert torch.equal(conv3x3(*inputs), torch.conv2d(*inputs, padding=1))
    torch.library.opcheck(conv3x3, inputs)


@pytest.mark.parametrize(("c", "o"), [(4, 64), (64, 4), (24, 24)], ids=lambda c: str(c))
def test_unsupported_channel_counts_use_pytorchs_convolution(c, o):
    inputs = draw(2, c, 6, 5, o)
    assert torch.equal(conv3x3(*inputs), torch.conv2d(*inputs, padding=1))
    torch.library.opcheck(conv3x3, inputs)


def test_opcheck():
    torch.library.opcheck(conv3x3, draw(2, 16, 6, 5, 32))
    torch.library.opcheck(conv3x3, draw(2, 32, 6, 5, 16, bias=False))


def test_inconsistent_shapes_and_dtypes_are_refused():
    x, weight, bias = draw(2, 32, 6, 6, 32)
    for bad in ((x[:, :16], weight, bias), (x, weight[..., :2], bias), (x, weight, bias[:16])):
        with pytest.raises(RuntimeError, match="must be"):
            conv3x3(*bad)
    with pytest.raises(RuntimeError, match="must be"):
        conv3x3(x, weight.double(), bias)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_matches_the_definition(capability):
    checks = (
        "for shape in ((2, 48, 7, 9, 80), (1, 336, 13, 4, 32), (200, 16, 4, 4, 16)):\n"
        "    assert_matches_definition(*draw(*shape))\n"
        "fast = native.cpu_capability() != 'baseline'\n"
        "assert is_faster(CPU, torch.float32) == fast"
    )
    run_with(capability, __file__, checks)


def test_the_thread_count_does_not_change_the_result():
    inputs = draw(3, 32, 50, 50, 80)
    with threads(1):
        one = conv3x3(*inputs)
    with threads(3):
        assert torch.equal(conv3x3(*inputs), one)


def test_the_kernel_is_chosen_for_large_inputs():
    assert pays(torch.Size([64, 64, 16, 16]), 64)
    assert pays(torch.Size([1, 128, 512, 512]), 128)
    assert pays(torch.Size([4, 1280, 4, 4]), 1280)
    # A single tile: most of the time goes into transforming the filters
    assert not pays(torch.Size([1, 1280, 4, 4]), 1280)
    # Most of every tile is padding
    assert not pays(torch.Size([64, 128, 2, 2]), 128)
    # Too few channels to repay the transforms, and an unsupported number of channels
    assert not pays(torch.Size([64, 16, 64, 64]), 16)
    assert not pays(torch.Size([64, 320, 64, 64]), 4)


@pytest.fixture(scope="module")
def model():
    return copy.deepcopy(models.load_model())


def inputs_of_unet():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    return latents, torch.tensor(500), torch.randn(2, 77, 128, generator=generator)


def assert_same(got, expected):
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@needs_exchange
@torch.no_grad()
def test_convolutions_are_exchanged_within_the_context(model):
    kinds = [type(module) for module in (*model.unet.modules(), *model.vae.modules())]
    inputs = inputs_of_unet()
    expected, image = model.unet(*inputs).sample, model.decode(inputs[0])
    with winograd_convolutions(model.unet), torch.profiler.profile() as profile:
        assert_same(model.unet(*inputs).sample, expected)
    assert any(event.key == "fastrepulse::conv3x3" for event in profile.key_averages())
    with winograd_convolutions(model.vae), torch.profiler.profile() as profile:
        assert_same(model.decode(inputs[0]), image)
    assert any(event.key == "fastrepulse::conv3x3" for event in profile.key_averages())
    assert [type(module) for module in (*model.unet.modules(), *model.vae.modules())] == kinds


@needs_exchange
@torch.no_grad()
def test_a_compiled_unet_is_one_graph(model):
    inputs = inputs_of_unet()
    expected = model.unet(*inputs).sample
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(
        lambda *given: model.unet(*given).sample, fullgraph=True, backend="aot_eager"
    )
    for _ in range(2):
        with winograd_convolutions(model.unet):
            got = compiled(*inputs)
    assert_same(got, expected)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_gradients_come_from_pytorchs_convolution(model):
    latents, *others = inputs_of_unet()
    latents.requires_grad_()
    with winograd_convolutions(model.unet):
        (got,) = torch.autograd.grad(model.unet(latents, *others).sample.sum(), latents)
    (expected,) = torch.autograd.grad(model.unet(latents, *others).sample.sum(), latents)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


class Convolutions(nn.Module):
    """A model with one convolution of each kind."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(64, 64, 3, padding=1)
        self.others = nn.ModuleList(
            [
                nn.Conv2d(64, 64, 1),
                nn.Conv2d(64, 64, 3),
                nn.Conv2d(64, 64, 3, padding=1, stride=2),
                nn.Conv2d(64, 64, 3, padding=2, dilation=2),
                nn.Conv2d(64, 64, 3, padding=1, groups=2),
                nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"),
                nn.ConvTranspose2d(64, 64, 3, padding=1),
            ]
        )


@needs_exchange
@torch.no_grad()
def test_only_plain_convolutions_are_exchanged():
    model, x = Convolutions(), torch.randn(4, 64, 16, 16)
    expected = [other(x) for other in model.others]
    with winograd_convolutions(model):
        assert type(model.plain) is not nn.Conv2d and type(model.plain).__mro__[1] is nn.Conv2d
        assert all(type(m) in (nn.Conv2d, nn.ConvTranspose2d) for m in model.others)
        assert all(torch.equal(m(x), e) for m, e in zip(model.others, expected, strict=True))


def test_an_error_in_the_context_restores_the_layers():
    model = Convolutions()
    with pytest.raises(RuntimeError, match="stopped"), winograd_convolutions(model):
        raise RuntimeError("stopped")
    assert type(model.plain) is nn.Conv2d


@torch.no_grad()
def test_half_precision_models_keep_their_convolutions(model):
    half = copy.deepcopy(model.unet).to(torch.bfloat16)
    with winograd_convolutions(half):
        assert sum(type(module) is nn.Conv2d for module in half.modules()) > 10
