import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

from fastrepulse import models, native, sample
from fastrepulse.layers.attention import NativeAttention, attention, attention_of, is_faster
from helpers.cpu_variants import CAPABILITIES, run_with, threads
from helpers.tolerances import AGAINST_FLOAT64, SAME_COMPUTATION

CPU = torch.device("cpu")
needs_avx512 = pytest.mark.skipif(
    not is_faster(CPU, torch.float32), reason="only with AVX-512 is torch's attention exchanged"
)
TOKENS = [(1, 1), (7, 24), (24, 7), (77, 77), (256, 1), (256, 24), (256, 256), (65, 1000)]
TOKENS += [(1000, 77), (1000, 1000), (1, 256)]
DIMS = [1, 8, 32, 33, 40, 64, 80, 160, 256]


def draw(n, m, d, batch=2, heads=3, seed=0):
    """Queries, keys and values [B, heads, tokens, d], as views of [B, tokens, heads * d]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, tokens, heads * d, generator=generator)
        .unflatten(2, (heads, d))
        .transpose(1, 2)
        for tokens in (n, m, m)
    ]


def by_hand(q, k, v, scale):
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(scale * q @ k.mT, dim=-1) @ v


def assert_right(q, k, v, scale):
    got = attention(q, k, v, scale)
    assert got.transpose(1, 2).is_contiguous() and got.dtype == q.dtype
    rtol, atol = AGAINST_FLOAT64[q.dtype]
    torch.testing.assert_close(got.double(), by_hand(q, k, v, scale), rtol=rtol, atol=atol)


def test_the_native_library_serves_here():
    assert native.has_kernel("attention_kernel", "cpu")


@pytest.mark.parametrize("d", DIMS, ids=lambda d: f"d{d}")
@pytest.mark.parametrize(("n", "m"), TOKENS, ids=lambda count: str(count))
def test_against_the_definition(n, m, d):
    assert_right(*draw(n, m, d), d**-0.5)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 30.0])
def test_large_logits_of_either_sign_do_not_overflow(scale):
    q, k, v = draw(70, 150, 32)
    # Whole numbers: the scores are exact, so that only the softmax is judged
    assert_right((8 * q).round(), (8 * k).round(), v, scale)


def test_weights_that_come_late_outdo_those_before():
    q, k, v = draw(5, 300, 16)
    k[:, :, -1] = 100 * q[:, :, 0]
    assert_right(q, k, v, 1.0)
    torch.testing.assert_close(attention(q, k, v, 1.0)[:, :, 0], v[:, :, -1])


@pytest.mark.parametrize("d", [1, 33, 64])
def test_any_strides(d):
    q, k, v = draw(50, 90, d)
    expected = attention(q, k, v, 0.2)
    assert torch.equal(attention(q.contiguous(), k.contiguous(), v.contiguous(), 0.2), expected)
    columns = (x.mT.contiguous().mT for x in (q, k, v))
    assert torch.equal(attention(*columns, 0.2), expected)
    every_second = torch.stack([q, q], dim=3).flatten(2, 3)[:, :, ::2]
    assert torch.equal(attention(every_second, k, v, 0.2), expected)
    one_head = k[:, :1].expand_as(k), v[:, :1].expand_as(v)
    assert_right(q, *one_head, 0.2)


@pytest.mark.parametrize("where", [0, 1, 2], ids=["query", "key", "value"])
def test_what_is_not_finite_is_not_hidden(where):
    inputs = draw(80, 100, 8)
    inputs[where][1, 2, 70, 3] = torch.nan
    got = attention(*inputs, 0.3)
    assert (
        got[1, 2, 70].isnan().any() and not got[:1].isnan().any() and not got[1, :2].isnan().any()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_left_to_torch(dtype):
    q, k, v = (x.to(dtype) for x in draw(9, 30, 8))
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.4)
    assert torch.equal(attention(q, k, v, 0.4), expected)
    torch.library.opcheck(attention, (q, k, v, 0.4))


def test_opcheck():
    torch.library.opcheck(attention, (*draw(9, 30, 8), 0.4))


def test_shapes_that_do_not_fit_are_refused():
    q, k, v = draw(9, 30, 8)
    for bad in ((q, k[:, :2], v), (q, k, v[:, :, :29]), (q, k[..., :7], v), (q, k.double(), v)):
        with pytest.raises(RuntimeError, match="must be"):
            attention(*bad, 1.0)
    with pytest.raises(RuntimeError, match="keys >= 1"):
        attention(q, k[:, :, :0], v[:, :, :0], 1.0)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set(capability):
    checks = (
        "for n, m, d in ((70, 100, 33), (256, 24, 32), (5, 300, 64)):\n"
        "    assert_right(*draw(n, m, d), d**-0.5)\n"
        "served = native.cpu_capability() == 'avx512'\n"
        "assert is_faster(CPU, torch.float32) == served"
    )
    run_with(capability, __file__, checks)


def test_threads_change_nothing():
    inputs = draw(600, 100, 16)
    with threads(1):
        one = attention(*inputs, 0.25)
    with threads(3):
        assert torch.equal(attention(*inputs, 0.25), one)


@pytest.fixture(scope="module")
def unet():
    return copy.deepcopy(models.load_model().unet)


def inputs_of_unet():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    return latents, torch.tensor(500), torch.randn(2, 77, 128, generator=generator)


@needs_avx512
@torch.no_grad()
def test_a_unets_attention_is_exchanged_for_a_while(unet):
    before, inputs = dict(unet.attn_processors), inputs_of_unet()
    expected = unet(*inputs).sample
    with attention_of(unet, "auto"), torch.profiler.profile() as profile:
        got = unet(*inputs).sample
    torch.testing.assert_close(got, expected, rtol=SAME_COMPUTATION[0], atol=SAME_COMPUTATION[1])
    assert unet.attn_processors == before
    ran = {event.key for event in profile.key_averages()}
    assert "fastrepulse::attention" in ran and "aten::scaled_dot_product_attention" not in ran


@needs_avx512
@torch.no_grad()
def test_a_compiled_unet_is_one_graph(unet):
    inputs = inputs_of_unet()
    expected = unet(*inputs).sample
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(
        lambda *given: unet(*given).sample, fullgraph=True, backend="aot_eager"
    )
    for _ in range(2):
        with attention_of(unet, "auto"):
            got = compiled(*inputs)
    torch.testing.assert_close(got, expected, rtol=SAME_COMPUTATION[0], atol=SAME_COMPUTATION[1])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_gradients_masks_and_norms_are_left_to_the_processor_before(unet):
    latents, timestep, text = inputs_of_unet()
    latents.requires_grad_()
    with attention_of(unet, "auto"):
        (got,) = torch.autograd.grad(unet(latents, timestep, text).sample.sum(), latents)
    (expected,) = torch.autograd.grad(unet(latents, timestep, text).sample.sum(), latents)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    mask = torch.ones(2, 77)
    mask[:, 20:] = 0
    with torch.no_grad():
        expected = unet(latents, timestep, text, encoder_attention_mask=mask).sample
        with attention_of(unet, "auto"):
            got = unet(latents, timestep, text, encoder_attention_mask=mask).sample
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@torch.no_grad()
def test_only_plain_attention_in_float32_is_exchanged(unet):
    half = copy.deepcopy(unet).to(torch.bfloat16)
    with attention_of(half, "auto"):
        assert not any(isinstance(p, NativeAttention) for p in half.attn_processors.values())
    with attention_of(unet, "math"), attention_of(unet, "auto"):
        assert not any(isinstance(p, NativeAttention) for p in unet.attn_processors.values())


def test_a_sample_is_that_of_torchs_attention():
    rtol, atol = SAME_COMPUTATION
    how = {"num_inference_steps": 4, "seed": 3, "progress": False, "compile": False}
    auto, sdpa = (sample("a red circle", 3, attention=a, **how).latents for a in ("auto", "sdpa"))
    torch.testing.assert_close(auto, sdpa, rtol=rtol, atol=10 * atol)
