"""The CUDA kernels, their launch code included, run on the CPU (cuda_shim) against float64."""

import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_shim.kernels import CudaKernels, build

from helpers.drawn import draw_rows
from helpers.tolerances import AGAINST_FLOAT64

if sys.platform != "linux" or shutil.which("g++") is None:
    pytest.skip("running CUDA kernels on the CPU needs Linux and g++", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# float32 comes out whatever goes in, from inputs that float64 holds exactly
RTOL, ATOL = AGAINST_FLOAT64[torch.float32]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda_shim"))


@pytest.fixture
def kernels(library):
    kernels = CudaKernels(library)
    kernels.set_seed(0)
    return kernels


def draw_integers(n, d, seed=0):
    """Rows whose squared distances float32 holds exactly, in whatever order they are summed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, (n, d), generator=generator).float()


def by_definition(x, h, y=None, weights=None):
    """Force and similarity in float64."""
    x = x.double()
    y = x if y is None else y.double()
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    k = torch.exp(-distance.square() / h)
    if weights is not None:
        k = k * weights.double()
    return 2 / h * (k.sum(1, keepdim=True) * x - k @ y), k.sum(1)


def sorted_sq_distances(x):
    return torch.pdist(x.double()).square().sort().values


def assert_close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=RTOL, atol=ATOL)


def shapes(*pairs):
    return pytest.mark.parametrize(
        ("n", "d"), [pytest.param(n, d, id=f"N{n}-d{d}") for n, d in pairs]
    )


dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@dtypes
@shapes(
    *[(n, d) for n in (1, 2, 3, 17) for d in (1, 4, 16, 63, 64, 65, 768)],
    *[(127, 1), (127, 20), (127, 63), (127, 64), (127, 130), (300, 4), (300, 64), (65, 768)],
    *[(2, 2080), (17, 2080), (3, 16384)],
)
def test_rbf_repulsion(kernels, n, d, dtype):
    x, h = draw_rows(n, d, dtype), torch.tensor(float(d))
    force, similarity = kernels.rbf_repulsion(x, h)
    expected_force, expected_similarity = by_definition(x, h.item())
    assert_close(force, expected_force)
    assert_close(similarity, expected_similarity)


@dtypes
@pytest.mark.parametrize("weighted", [False, True], ids=["ones", "weights"])
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        pytest.param(n, m, d, id=f"N{n}-M{m}-d{d}")
        for n, m, d in [(1, 300, 4), (17, 1, 16), (3, 200, 63), (70, 129, 65), (2, 130, 768)]
    ],
)
def test_rbf_repulsion_of_two_sets(kernels, n, m, d, weighted, dtype):
    x, y, h = draw_rows(n, d, dtype), draw_rows(m, d, dtype, seed=1), torch.tensor(float(d))
    # Of either sign, as in a gradient
    weights = draw_rows(m, 1, seed=2).flatten() if weighted else None
    force, similarity = kernels.rbf_repulsion(x, h, y, weights)
    expected_force, expected_similarity = by_definition(x, h.item(), y, weights)
    assert_close(force, expected_force)
    assert_close(similarity, expected_similarity)


@pytest.mark.parametrize(
    ("n", "m", "panel_columns"),
    [
        # A panel has 1024 rows
        pytest.param(1030, 3, 128, id="two-of-rows"),
        # 128 columns are summed as a whole, 512 in parts
        pytest.param(3, 200, 128, id="two-of-columns"),
        pytest.param(3, 700, 512, id="two-of-columns-in-parts"),
    ],
)
def test_rbf_repulsion_of_more_than_a_panel(kernels, n, m, panel_columns):
    d = 65
    x, y, h = draw_rows(n, d), draw_rows(m, d, seed=1), torch.tensor(float(d))
    weights = draw_rows(m, 1, seed=2).flatten()
    force, similarity = kernels.rbf_repulsion(x, h, y, weights, panel_columns)
    expected_force, expected_similarity = by_definition(x, h.item(), y, weights)
    assert_close(force, expected_force)
    assert_close(similarity, expected_similarity)


@pytest.mark.parametrize("h", [1e-45, 1e-30, 1e-3, 1e-1, 10.0, 1e6, 1e30])
@pytest.mark.parametrize("d", [4, 100])
def test_rbf_repulsion_at_every_bandwidth(kernels, d, h):
    x = torch.cat([draw_rows(9, d), draw_rows(4, d)])  # four duplicates
    bandwidth = torch.tensor(h)
    force, similarity = kernels.rbf_repulsion(x, bandwidth)
    expected_force, expected_similarity = by_definition(x, bandwidth.double().item())
    assert_close(similarity, expected_similarity)
    # The sum without its factor 2 / h, which is what has a scale
    assert_close(force.double() * h / 2, expected_force * h / 2)


@pytest.mark.parametrize("d", [1, 16, 64, 100])
def test_duplicates_do_not_push_each_other(kernels, d):
    x = draw_rows(1, d).expand(50, d).contiguous()
    force, similarity = kernels.rbf_repulsion(x, torch.tensor(1.0))
    assert (similarity == 50).all()
    # In proportion to the 50 terms (2 / h) x that cancel
    assert_close(force / 100, torch.zeros(50, d))


@pytest.mark.parametrize("n", [1, 100, 1000, 10**5, 10**7])
@pytest.mark.parametrize("d", [1, 64, 65, 768, 16384])
def test_workspaces_are_bounded(kernels, n, d):
    assert 4 * kernels.rbf_repulsion_workspace(n, n, d) <= 64 * 2**20
    assert 4 * kernels.rbf_repulsion_workspace(1, n, d) <= 64 * 2**20
    assert kernels.median_sq_distance_workspace(n, d) <= 64 * 2**20


@shapes((2, 1), (3, 16), (17, 63), (127, 4), (127, 64), (300, 16), (17, 768), (130, 65), (2, 2080))
def test_median_sq_distance_is_that_of_sorting(kernels, n, d):
    x = draw_integers(n, d)
    expected = sorted_sq_distances(x).round()
    for rank in {0, (len(expected) - 1) // 2, len(expected) - 1}:
        assert kernels.median_sq_distance(x, rank).item() == expected[rank].item()


@dtypes
@shapes((2, 1), (17, 63), (127, 64), (65, 130), (5, 2080))
def test_median_sq_distance_of_random_rows(kernels, n, d, dtype):
    x = draw_rows(n, d, dtype)
    expected = sorted_sq_distances(x)
    rank = (len(expected) - 1) // 2
    assert_close(kernels.median_sq_distance(x, rank), expected[rank])


@pytest.mark.parametrize("d", [1, 100])
def test_median_sq_distance_of_ties(kernels, d):
    x = torch.zeros(90, d)
    assert kernels.median_sq_distance(x, 2000).item() == 0
    # 80 rows alike and 10 others alike: 3205 pairs at 0, then 800 at one distance
    x[80:] = 3
    assert kernels.median_sq_distance(x, 3204).item() == 0
    assert kernels.median_sq_distance(x, 3205).item() == 9 * d


@pytest.mark.parametrize("size", [1e-22, 1e-15, 1e15])
def test_median_sq_distance_at_the_ends_of_float32(kernels, size):
    x = draw_integers(20, 3) * torch.tensor(size)
    # float32 on both sides: below 1e-38 its numbers grow coarse
    differences = x[:, None] - x[None]
    first, second = torch.triu_indices(20, 20, 1)
    expected = differences.square().sum(-1)[first, second].sort().values[95]
    torch.testing.assert_close(kernels.median_sq_distance(x, 95), expected, rtol=RTOL, atol=1e-44)


@dtypes
@shapes((2, 1), (2, 300), (3, 16), (17, 63), (65, 64), (128, 4), (17, 768), (5, 2080))
def test_median_rbf_repulsion(kernels, n, d, dtype):
    # Away from the origin, as the kernel must not mind
    x = (draw_rows(n, d) + 3).to(dtype)
    force, similarity, bandwidth = kernels.median_rbf_repulsion(x)
    distances = sorted_sq_distances(x)
    h = distances[(len(distances) - 1) // 2].item() / math.log(n)
    expected_force, expected_similarity = by_definition(x, h)
    assert_close(bandwidth, torch.tensor(h, dtype=torch.float64))
    assert_close(force, expected_force)
    assert_close(similarity, expected_similarity)


def test_median_rbf_repulsion_is_the_same_for_any_number_of_blocks(kernels):
    x = draw_integers(9, 1500)
    one, four = (kernels.median_rbf_repulsion(x, capacity) for capacity in (1, 4))
    for a, b in zip(one, four, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("d", [1, 300])
def test_median_rbf_repulsion_keeps_a_floor_under_the_bandwidth(kernels, d):
    force, similarity, bandwidth = kernels.median_rbf_repulsion(torch.zeros(6, d))
    assert bandwidth.item() == 1 and (similarity == 6).all() and (force == 0).all()
    alike = torch.full((6, d), 1e-3)
    alike[0] = 1
    variance = alike.double().var(dim=0, correction=0).sum()
    force, similarity, bandwidth = kernels.median_rbf_repulsion(alike)
    assert_close(bandwidth, 1e-4 * variance)
    assert similarity[0] == 1 and (similarity[1:] == 5).all() and (force == 0).all()


@pytest.mark.parametrize("d", [1, 300])
def test_median_rbf_repulsion_passes_nan_on(kernels, d):
    x = draw_rows(9, d)
    x[3, d // 2] = math.nan  # the median of the 36 distances is a number, the variance is not
    force, similarity, bandwidth = kernels.median_rbf_repulsion(x)
    assert bandwidth.isnan() and force.isnan().all() and similarity.isnan().all()


@pytest.mark.parametrize("d", [20, 300])
def test_the_order_of_threads_makes_no_difference(kernels, d):
    x = draw_rows(70, d)

    def everything(seed):
        kernels.set_seed(seed)
        return (
            *kernels.rbf_repulsion(x, torch.tensor(float(d))),
            kernels.median_sq_distance(x, 1000),
            *kernels.median_rbf_repulsion(x[:20]),
        )

    first = everything(0)
    for seed in (1, 2):
        for a, b in zip(first, everything(seed), strict=True):
            assert torch.equal(a, b)


OPERATORS = ["rbf_repulsion", "median_sq_distance", "median_rbf_repulsion"]


@pytest.fixture(scope="module")
def ended_by(library):
    """The signal that ended each run beside a page without access, and what the runs wrote."""
    program = Path(__file__).parents[1] / "cuda_shim" / "guard_pages.py"
    done = subprocess.run(
        [sys.executable, str(program), str(library)], capture_output=True, text=True
    )
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return {case: int(number) for case, number in lines}, done.stderr


@pytest.mark.parametrize("side", ["before", "behind"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("missing", [0, 1], ids=["all-there", "one-missing"])
def test_nothing_outside_the_tensors_is_touched(ended_by, operator, side, missing):
    signals, errors = ended_by
    assert signals[f"{operator} {side} {missing}"] == (signal.SIGSEGV if missing else 0), errors
