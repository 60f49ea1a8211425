import math
from types import SimpleNamespace

import pytest
import torch

from fastrepulse.kernels import dispatch, median_bandwidth, median_rbf_repulsion, rbf_repulsion
from fastrepulse.kernels.dispatch import why_not
from helpers.backends import BACKENDS, PLACES, skip_unless_served
from helpers.cpu_variants import CAPABILITIES, run_with, threads
from helpers.drawn import draw_rows
from helpers.tolerances import AGAINST_FLOAT64

SHAPES = [
    pytest.param(n, d, id=f"N{n}-d{d}")
    for n, d in [
        *((1, 1), (1, 4), (2, 1), (2, 4), (3, 16), (17, 63), (64, 64), (127, 5), (65, 129)),
        *((5, 768), (130, 768), (3, 2080), (127, 2080), (2, 16384), (1000, 16), (1000, 64)),
    ]
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def by_hand(x, h, y=None, w=None):
    """Returns force and similarity from the definition in float64, one particle at a time."""
    x = x.double()
    y = x if y is None else y.double()
    w = torch.ones(len(y)).double() if w is None else w.double()
    force, similarity = torch.empty_like(x), torch.empty(len(x)).double()
    for i, particle in enumerate(x):
        difference = particle - y  # [M, d]
        k = w * torch.exp(-difference.square().sum(dim=1) / h)
        force[i], similarity[i] = 2 / h * (k[:, None] * difference).sum(dim=0), k.sum()
    return force, similarity


def assert_close(got, expected, dtype):
    rtol, atol = AGAINST_FLOAT64[dtype]
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double().cpu(), other, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_force_and_similarity_match_the_definition(n, d, dtype, device, backend):
    skip_unless_served(device, backend, dtype)
    x = draw_rows(n, d, dtype)
    got = rbf_repulsion(x.to(device), float(d), backend=backend)
    assert_close(got, by_hand(x, float(d)), dtype)


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (3, 200, 4), (70, 17, 63), (2, 130, 1100), (65, 64, 64)]
)
def test_a_second_weighted_set_matches_the_definition(n, m, d, dtype, device, backend):
    skip_unless_served(device, backend, dtype)
    x, y = draw_rows(n, d, dtype), draw_rows(m, d, dtype, seed=1) + 1
    w, own = (draw_rows(count, 1, dtype, seed=2)[:, 0] for count in (m, n))
    h = 2.0 * d
    for others, weights in ((y, None), (y, w), (None, own)):
        there = [None if t is None else t.to(device) for t in (others, weights)]
        got = rbf_repulsion(x.to(device), h, *there, backend=backend)
        assert_close(got, by_hand(x, h, others, weights), dtype)


@pytest.mark.parametrize("shape", [(70, 5), (140, 5), (140, 600)], ids=["few", "tiles", "wide"])
@pytest.mark.parametrize("h", [1e-30, 1e-6, 1e-2, 1e6, 1e30])
@pytest.mark.parametrize("device", BACKENDS)
def test_tiny_and_huge_bandwidths_match_the_definition(shape, h, device):
    x = draw_rows(*shape, torch.float32)
    x[3] = x[11]
    assert_close(rbf_repulsion(x.to(device), h), by_hand(x, h), torch.float32)


@pytest.mark.parametrize("shape", [(40, 7), (200, 7), (200, 600)], ids=["few", "tiles", "wide"])
def test_exact_duplicates_have_similarity_one_and_no_force(shape):
    x = draw_rows(1, shape[1], torch.float32).expand(shape) * 100
    force, similarity = rbf_repulsion(x, 1e-12)
    assert (similarity == len(x)).all() and force.abs().max() * 1e-12 < 1e-4 * x.abs().max()
    x = x.clone()
    x[::2] += 1
    assert (rbf_repulsion(x, 1e-12)[1] == len(x) / 2).all()


def test_near_duplicates_far_from_the_origin_keep_their_force():
    x = draw_rows(6, 8, torch.float64) * 1e-3
    moved = (x + 100).float()
    force, _ = rbf_repulsion(moved, 1e-5)
    expected, _ = by_hand(moved, 1e-5)
    torch.testing.assert_close(force.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(9000, 3), (5000, 96), (700, 1500)])
def test_more_particles_than_one_panel(n, d):
    x = draw_rows(n, d, torch.float32)
    force, similarity = rbf_repulsion(x, float(d))
    some = torch.arange(0, n, 97)
    assert_close((force[some], similarity[some]), by_hand(x[some], float(d), x), torch.float32)


def test_two_particles_repel_along_their_connecting_line():
    force, similarity = rbf_repulsion(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), 25.0)
    torch.testing.assert_close(similarity, torch.full((2,), 1 + math.exp(-1)))
    expected = 2 / 25 * math.exp(-1) * torch.tensor([[-3.0, -4.0], [3.0, 4.0]])
    torch.testing.assert_close(force, expected)


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        pytest.param((7, 5), "reference", id="sm_75"),
        pytest.param((8, 0), "triton", id="sm_80"),
    ],
)
def test_gpus_without_kernels_use_the_reference(capability, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1000, 64))
    assert dispatch.choose(on_gpu, "auto") == chosen
    if chosen == "reference":
        assert "sm_80 or later" in dispatch.describe("triton", "cuda")
        with pytest.raises(ValueError, match="sm_80 or later"):
            dispatch.choose(on_gpu, "triton")


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(2, 1), (50, 6), (128, 300), (150, 6), (150, 600)])
def test_median_rbf_repulsion_matches_the_separate_calls(n, d, dtype, device, backend):
    skip_unless_served(device, backend, dtype)
    x = draw_rows(n, d, dtype)
    force, similarity, bandwidth = median_rbf_repulsion(x.to(device), backend=backend)
    expected = torch.pdist(x.double()).square().sort().values[(n * (n - 1) // 2 - 1) // 2]
    rtol, _ = AGAINST_FLOAT64[torch.float64 if dtype == torch.float64 else torch.float32]
    assert bandwidth.item() == pytest.approx(expected.item() / math.log(n), rel=rtol)
    assert_close((force, similarity), by_hand(x, bandwidth.item()), dtype)
    alone = median_bandwidth(x.to(device), backend=backend)
    assert bandwidth == (alone if device == "cpu" else pytest.approx(alone.item(), rel=rtol))
    got = rbf_repulsion(x.to(device), "median", backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, (force, similarity), strict=True))


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize(("n", "d"), [(16, 3), (256, 3), (256, 600)])
def test_the_median_bandwidth_is_never_zero(n, d, device, backend):
    # Integers, and a power of two of them, so that the mean is exact
    x = (8 * draw_rows(1, d, torch.float32)).round().expand(n, d).clone()
    same = [each.cpu() for each in median_rbf_repulsion(x.to(device), backend=backend)]
    assert same[2] == 1 and (same[0] == 0).all() and (same[1] == n).all()
    x[: n // 10] += 1
    variance = (x - x.mean(dim=0)).double().square().sum(dim=1).mean().item()
    bandwidth = median_rbf_repulsion(x.to(device), backend=backend)[2].item()
    assert bandwidth == pytest.approx(1e-4 * variance, rel=1e-5)
    x[3, 1] = math.nan
    assert median_rbf_repulsion(x.to(device), backend=backend)[2].isnan()


def test_non_contiguous_input():
    x, y = draw_rows(8, 6, torch.float32), draw_rows(12, 8, torch.float32)
    torch.testing.assert_close(rbf_repulsion(x.T, 3.0), rbf_repulsion(x.T.contiguous(), 3.0))
    strided = y[::2, :]
    torch.testing.assert_close(
        rbf_repulsion(x.T, 3.0, strided), rbf_repulsion(x.T.contiguous(), 3.0, strided.contiguous())
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("d", [5, 600])
def test_nan_and_inf_propagate(bad, d):
    x = draw_rows(20, d, torch.float32)
    x[7, 3] = bad
    force, similarity = rbf_repulsion(x, 3.0)
    assert force.isnan().any() and similarity.isnan().any()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_matches_the_definition(capability):
    checks = (
        "for n, d, dtype in ((70, 5, torch.float32), (300, 40, torch.float64),"
        " (133, 600, torch.float32)):\n"
        "    x = draw_rows(n, d, dtype)\n"
        "    assert_close(rbf_repulsion(x, float(d)), by_hand(x, float(d)), dtype)"
    )
    run_with(capability, __file__, checks)


def test_the_thread_count_changes_only_rounding_and_runs_repeat():
    for n, d, exact in (
        (1500, 24, True),
        (400, 700, False),
        (1100, 2000, True),
        (100, 3000, False),
    ):
        x = draw_rows(n, d, torch.float32)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(rbf_repulsion(x, float(d)))
                again = rbf_repulsion(x, float(d))
            assert all(torch.equal(a, b) for a, b in zip(results[-1], again, strict=True))
        # Threads split the dimensions when there are few particles, and the pairs otherwise
        rtol, atol = (0, 0) if exact else AGAINST_FLOAT64[torch.float32]
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=rtol, atol=atol)


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("h", [1e-6, 1e-2, 1.0, 1e6])
def test_force_is_minus_the_gradient_of_similarity(h, device, backend):
    skip_unless_served(device, backend, torch.float64)
    x = draw_rows(9, 4, torch.float64).to(device).requires_grad_()
    # Half, because the sum counts every pair twice
    total = rbf_repulsion(x, h, backend=backend)[1].sum() / 2
    (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(rbf_repulsion(x.detach(), h)[0], -gradient)


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_similarity_passes_gradcheck(device, backend):
    skip_unless_served(device, backend, torch.float64)
    x, y = (draw_rows(n, 3, torch.float64).to(device).requires_grad_() for n in (5, 4))
    w, v = (
        draw_rows(n, 1, torch.float64, seed=1)[:, 0].to(device).requires_grad_() for n in (5, 4)
    )

    def similarity(x, y=None, w=None):
        return rbf_repulsion(x, 2.0, y, w, backend=backend)[1]

    assert torch.autograd.gradcheck(similarity, (x,))
    assert torch.autograd.gradcheck(similarity, (x, y))
    assert torch.autograd.gradcheck(similarity, (x, None, w))
    assert torch.autograd.gradcheck(similarity, (x, y, v))
    assert torch.autograd.gradcheck(lambda y: similarity(x.detach(), y), (y,))


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_the_gradient_treats_the_median_bandwidth_as_a_constant(device, backend):
    skip_unless_served(device, backend, torch.float64)
    x = draw_rows(7, 3, torch.float64).to(device).requires_grad_()
    h = median_bandwidth(x).item()
    one, other = (
        torch.autograd.grad(rbf_repulsion(x, at, backend=backend)[1].square().sum(), x)[0]
        for at in ("median", h)
    )
    torch.testing.assert_close(one, other)
    with pytest.raises(NotImplementedError, match="bandwidth"):
        median_rbf_repulsion(x)[2].backward()


def test_the_force_has_no_gradient():
    x = draw_rows(5, 3, torch.float32).requires_grad_()
    with pytest.raises(NotImplementedError, match="has no gradient"):
        rbf_repulsion(x, 2.0)[0].sum().backward()


@pytest.mark.parametrize(("device", "backend"), PLACES)
@pytest.mark.parametrize("with_others", [False, True])
def test_opcheck(device, backend, with_others):
    x, y = (draw_rows(n, 3, torch.float32).to(device) for n in (6, 4))
    others = (y, torch.ones(4, device=device)) if with_others else (None, None)
    op = torch.ops.fastrepulse.rbf_repulsion.default
    torch.library.opcheck(op, (x, torch.tensor(2.0, device=device), *others, backend))

    torch.library.opcheck(torch.ops.fastrepulse.median_rbf_repulsion.default, (x, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_into_one_graph(dtype):
    x = draw_rows(7, 5, dtype)
    for bandwidth in (2.0, "median"):
        compiled = torch.compile(
            lambda x, h=bandwidth: rbf_repulsion(x, h), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(x), rbf_repulsion(x, bandwidth))


X = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((torch.zeros(3), 1.0), ValueError, r"\(3,\)"),
        ((torch.zeros(2, 2, 2), 1.0), ValueError, r"\(2, 2, 2\)"),
        ((torch.zeros(0, 2), 1.0), ValueError, r"\(0, 2\)"),
        ((torch.zeros(2, 2, dtype=torch.int64), 1.0), TypeError, "int64"),
        (([[0.0]], 1.0), TypeError, "list"),
        ((X, 0.0), ValueError, "0.0"),
        ((X, -1.0), ValueError, "-1.0"),
        ((X, math.nan), ValueError, "nan"),
        ((X, "mean"), ValueError, "'mean'"),
        ((X, torch.ones(2)), ValueError, r"\[2\]"),
        ((X, 1.0, torch.zeros(2, 3)), ValueError, r"y must be \[M, 2\]"),
        ((X, 1.0, torch.zeros(2, 2).double()), ValueError, "float64"),
        ((X, 1.0, torch.zeros(3, 2), torch.ones(2)), ValueError, r"weights must be \[3\]"),
        ((X, 1.0, None, [1.0, 1.0]), TypeError, "weights"),
    ],
)
def test_errors_name_the_bad_value(arguments, error, named):
    with pytest.raises(error, match=named):
        rbf_repulsion(*arguments)


def test_unavailable_backends_give_the_reason():
    with pytest.raises(ValueError, match="must be one of native, triton, reference, got 'cuda'"):
        rbf_repulsion(X, 1.0, backend="cuda")
    with pytest.raises(ValueError, match="backend 'triton' cannot compute"):
        rbf_repulsion(X.double(), 1.0, backend="triton")
    assert "without kernels for xpu" in why_not("native", "xpu", torch.float32)


def test_a_library_built_for_other_gpus_is_not_used(monkeypatch):
    def no_image(_):
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(torch.cuda, "synchronize", no_image)
    reason = dispatch._why_no_launch.__wrapped__(0)
    assert "do not run on this GPU: CUDA error: no kernel image is available for" in reason
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert dispatch._why_no_launch.__wrapped__(0) is None
