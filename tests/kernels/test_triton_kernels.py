"""The Triton kernels in Triton's interpreter, against the definition in float64.

Triton reads TRITON_INTERPRET when it is imported. Therefore the interpreter runs in a process of
its own; other tests compile the same kernels.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
import torch

from helpers.drawn import draw_rows
from helpers.tolerances import AGAINST_FLOAT64, TIMES_EAGER

pytest.importorskip("triton")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FULL_SIZE = {
    "multiprocessors": 1,
    "workspace": 2**23,
    "panel_columns": 4096,
    "max_sorted": 1024,
}


def run(name, *arguments, **sizes):
    """Runs a kernel in the interpreter's process, for a device and workspace of the given sizes."""
    import triton

    from fastrepulse import triton_kernels
    from fastrepulse.triton_kernels import fused, median_sq_distance, panels

    assert triton.knobs.runtime.interpret
    # Makes torch.empty return NaN
    torch.use_deterministic_algorithms(True)
    sizes = FULL_SIZE | sizes
    for module in (fused, median_sq_distance, panels):
        module.multiprocessors = lambda device: sizes["multiprocessors"]
    fused.WORKSPACE = panels.WORKSPACE = median_sq_distance.WORKSPACE = sizes["workspace"]
    median_sq_distance.MAX_SORTED = sizes["max_sorted"]
    panels.MAX_PANEL_COLUMNS = sizes["panel_columns"]
    return getattr(triton_kernels, name)(*arguments)


@pytest.fixture(scope="module")
def interpret():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield lambda *arguments, **sizes: pool.submit(run, *arguments, **sizes).result()


@pytest.fixture
def repulsion(interpret):
    return partial(interpret, "rbf_repulsion_kernel")


@pytest.fixture(params=[0, 1024], ids=["radix", "sorted"])
def median(interpret, request):
    return partial(interpret, "median_sq_distance_kernel", max_sorted=request.param)


def definition(x, h, y=None, weights=None):
    """Returns force and similarity in float64, and the sums of their terms' magnitudes."""
    x, y = x.double(), (x if y is None else y).double()
    weights = torch.ones(len(y)) if weights is None else weights
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    k = weights.double() * torch.exp(-distance.square() / h)
    force = 2 / h * (k.sum(1)[:, None] * x - k @ y)
    return force, k.sum(1), 2 / h * (k.abs() * distance).sum(1), k.abs().sum(1)


def check(result, x, h, y=None, weights=None):
    force, similarity = result
    expected_force, expected_similarity, force_scale, similarity_scale = definition(
        x, h, y, weights
    )
    rtol, atol = AGAINST_FLOAT64[x.dtype]
    assert force.dtype == similarity.dtype == torch.float32
    assert force.shape == x.shape and similarity.shape == x.shape[:1]
    # Signed weights cancel, so errors are relative to the sum of magnitudes
    tiny = torch.finfo(torch.float32).tiny
    norms = (force - expected_force).norm(dim=1)
    assert (norms <= rtol * force_scale + atol * 2 / h * similarity_scale + tiny).all()
    errors = (similarity - expected_similarity).abs()
    assert (errors <= rtol * similarity_scale + tiny).all()


def with_dtypes(*cases):
    """Returns every case with every dtype; only one dtype of a case, in turn, is not slow."""
    return [
        pytest.param(
            *(*case.values, dtype),
            id=f"{case.id}-{dtype}",
            marks=() if i % len(DTYPES) == j else pytest.mark.slow,
        )
        for i, case in enumerate(cases)
        for j, dtype in enumerate(DTYPES)
    ]


SHAPES = [
    *[(1, 1), (1, 2080), (2, 4), (3, 16), (17, 1), (17, 63), (127, 4), (127, 64)],
    *[(17, 128), (127, 200), (3, 768), (127, 768), (17, 2080), (300, 16)],
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [pytest.param(n, d, id=f"N{n}-d{d}") for n, d in SHAPES])
def test_force_and_similarity_match_the_definition(n, d, dtype, repulsion):
    x, h = draw_rows(n, d, dtype), float(d)
    check(repulsion(x, torch.tensor(h)), x, h)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["ones", "weights"])
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        pytest.param(17, 200, 63, id="N17-M200-d63"),
        pytest.param(130, 5, 64, id="N130-M5-d64"),
        pytest.param(1, 127, 300, id="N1-M127-d300"),
        pytest.param(127, 3, 768, id="N127-M3-d768"),
    ],
)
def test_a_second_set_matches_the_definition(n, m, d, weighted, dtype, repulsion):
    x, y, h = draw_rows(n, d, dtype), draw_rows(m, d, dtype, seed=1), float(d)
    weights = draw_rows(m, 1, seed=2)[:, 0] if weighted else None
    check(repulsion(x, torch.tensor(h), y, weights), x, h, y, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
@pytest.mark.parametrize("d", [5, 300])
def test_small_and_large_weights_match_the_definition(d, scale, dtype, repulsion):
    x, weights, h = draw_rows(19, d, dtype), scale * draw_rows(19, 1, seed=1)[:, 0], float(d)
    check(repulsion(x, torch.tensor(h), None, weights), x, h, None, weights)


def test_zero_weights_and_a_second_set_equal_to_the_first(repulsion):
    x, h = draw_rows(19, 5, torch.float16), torch.tensor(3.0)
    force, similarity = repulsion(x, h, None, torch.zeros(19))
    assert (force == 0).all() and (similarity == 0).all()
    check(repulsion(x, h, x.clone()), x, 3.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("h", [1e-6, 1e-2, 1e6, 1e30])
@pytest.mark.parametrize("d", [4, 300])
def test_small_and_large_bandwidths_match_the_definition(d, h, dtype, repulsion):
    x = draw_rows(17, d, dtype)
    check(repulsion(x, torch.tensor(h)), x, h)


@pytest.mark.parametrize("d", [4, 300])
def test_duplicates_add_similarity_and_no_force(d, repulsion):
    x = torch.randint(-3, 4, (1, d), generator=torch.Generator().manual_seed(0)).float()
    force, similarity = repulsion(x.repeat(70, 1), torch.tensor(1e-6))
    assert (force == 0).all() and (similarity == 70).all()


@pytest.mark.parametrize(
    ("n", "m", "d", "sizes", "dtype"),
    with_dtypes(
        pytest.param(17, None, 40, {"multiprocessors": 2}, id="one-block-of-columns"),
        pytest.param(17, 500, 40, {"multiprocessors": 2}, id="columns-split"),
        pytest.param(140, None, 7, {"multiprocessors": 64}, id="columns-split-self"),
        pytest.param(9, None, 900, {"multiprocessors": 5}, id="depth-split"),
        pytest.param(9, 300, 600, {"multiprocessors": 64}, id="depth-split-second-set"),
        pytest.param(300, None, 260, {"multiprocessors": 64}, id="product-split"),
        pytest.param(140, 700, 260, {"multiprocessors": 9}, id="product-split-second-set"),
        pytest.param(
            *(260, 300, 260, {"multiprocessors": 9, "panel_columns": 256}),
            id="product-split-panels",
        ),
        pytest.param(
            *(300, None, 260, {"workspace": 2**16, "panel_columns": 256}), id="panels-self"
        ),
        pytest.param(270, 300, 260, {"workspace": 2**16, "panel_columns": 256}, id="panels"),
    ),
)
def test_work_split_between_programs_and_panels(n, m, d, sizes, dtype, repulsion):
    x, h = draw_rows(n, d, dtype), float(d)
    y = None if m is None else draw_rows(m, d, dtype, seed=1)
    weights = draw_rows(m or n, 1, seed=2)[:, 0]
    check(repulsion(x, torch.tensor(h), y, weights, **sizes), x, h, y, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [64, 768])
def test_half_precision_error_is_at_most_twice_plain_pytorchs(d, dtype, repulsion):
    x, h = draw_rows(127, d, dtype), float(d)
    expected = definition(x, h)[0]
    norms = x.square().sum(1)
    k = torch.exp((norms[:, None] + norms - 2 * x @ x.T).clamp_min(0) / -h)
    eager = 2 / h * (k.sum(1, keepdim=True) * x - k @ x)
    error = (repulsion(x, torch.tensor(h))[0] - expected).norm()
    assert error <= TIMES_EAGER * (eager - expected).norm()


@pytest.mark.parametrize("d", [6, 300])
def test_the_gradient_of_similarity_is_a_weighted_force(d, repulsion):
    x, g, h = draw_rows(21, d), draw_rows(21, 1, seed=1)[:, 0], torch.tensor(float(d))
    leaf = x.double().requires_grad_()
    k = torch.exp(-(leaf[:, None] - leaf).square().sum(-1) / d)
    (expected,) = torch.autograd.grad((g.double() * k.sum(1)).sum(), leaf)
    gradient = -(g[:, None] * repulsion(x, h)[0] + repulsion(x, h, None, g)[0])
    rtol, atol = AGAINST_FLOAT64[torch.float32]
    torch.testing.assert_close(gradient.double(), expected, rtol=rtol, atol=atol)


def ranks(n):
    pairs = n * (n - 1) // 2
    return sorted({0, pairs // 3, (pairs - 1) // 2, pairs - 1})


@pytest.mark.parametrize(
    ("n", "d", "multiprocessors", "dtype"),
    with_dtypes(
        *(
            pytest.param(n, d, p, id=f"N{n}-d{d}-on{p}")
            for n, d, p in [
                *((2, 1, 1), (3, 16, 1), (17, 63, 4), (127, 4, 1), (300, 5, 3), (17, 768, 5)),
            ]
        )
    ),
)
def test_order_statistics_equal_sorting(n, d, multiprocessors, dtype, median):
    # Small integers: every distance is exact in float32, and most of them tie
    x = torch.randint(-3, 4, (n, d), generator=torch.Generator().manual_seed(n))
    i, j = torch.triu_indices(n, n, 1)
    distances = (x[i] - x[j]).square().sum(1).sort().values
    for rank in ranks(n):
        result = median(x.to(dtype), rank, multiprocessors=multiprocessors)
        assert result.shape == () and result.dtype == torch.float32
        assert result.item() == distances[rank].item()


@pytest.mark.parametrize(
    ("n", "d", "scale", "dtype"),
    with_dtypes(
        *(
            pytest.param(n, d, scale, id=f"N{n}-d{d}-{scale}")
            for n, d in [(127, 16), (17, 768)]
            for scale in (1e-4, 1.0, 1e4)
        )
    ),
)
def test_the_median_of_random_particles_matches_pdist(n, d, scale, dtype, median):
    x = (scale * draw_rows(n, d)).to(dtype)
    distances = torch.pdist(x.double()).square()
    rank = (len(distances) - 1) // 2
    rtol, _ = AGAINST_FLOAT64[torch.float32]
    assert median(x, rank).item() == pytest.approx(distances.median().item(), rel=rtol)


@pytest.mark.parametrize("copies", [130, 90], ids=["all", "most"])
def test_the_median_of_duplicates_is_zero(copies, median):
    x = torch.cat([torch.ones(copies, 3), draw_rows(130 - copies, 3)])
    pairs, same = 130 * 129 // 2, copies * (copies - 1) // 2
    assert median(x, same - 1).item() == 0
    if same < pairs:
        assert median(x, same).item() > 0
