"""The CPU kernels use bounded memory and stay inside their tensors."""

import subprocess
import sys

import pytest

GUARDED = """
import ctypes, mmap, sys, torch
from fastrepulse.layers.convolutions import conv3x3
from fastrepulse.kernels import median_sq_distance, rbf_repulsion

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE

def against_a_guard(tensor, shift=0):
    # The copy ends at the end of a page, and the next page cannot be read or written
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // PAGE) + 1
    start = libc.mmap(None, (pages + 1) * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(start + pages * PAGE, PAGE, 0) == 0
    at = start + pages * PAGE - size + shift
    buffer = (ctypes.c_char * size).from_address(at)
    copy = torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape)
    if not shift:
        copy.copy_(tensor)
    return copy

if sys.argv[1] == "overrun":
    print(against_a_guard(torch.randn(4), shift=4).sum())
for dtype in (torch.float64, torch.float32, torch.float16):
    for n, d in ((1, 1), (3, 5), (65, 17), (70, 64), (33, 515)):
        x, y = (against_a_guard(torch.randn(m, d).to(dtype)) for m in (n, n + 2))
        w = against_a_guard(torch.ones(n + 2).to(dtype))
        rbf_repulsion(x, 1.0)
        rbf_repulsion(x, 1.0, y, w)
        median_sq_distance(y)
for n, h, w, c, o in ((1, 1, 1, 16, 16), (2, 5, 7, 48, 80), (1, 8, 4, 336, 32)):
    x, weight = (torch.randn(*shape) for shape in ((n, h, w, c), (o, 3, 3, c)))
    x, weight = (against_a_guard(each).permute(0, 3, 1, 2) for each in (x, weight))
    conv3x3(x, weight, against_a_guard(torch.randn(o)))
print("inside")
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )


def test_kernels_do_not_read_past_the_end():
    done = run(GUARDED, "kernels")
    assert done.stdout.strip() == "inside", done.stderr


def test_reading_past_the_end_would_crash():
    assert run(GUARDED, "overrun").returncode < 0


BOUNDED = """
import resource, sys, torch
from fastrepulse import native
from fastrepulse.kernels import median_sq_distance, rbf_repulsion

op, n, d, extra = sys.argv[1], *map(int, sys.argv[2:])
assert native.why_unavailable() is None
torch.set_num_threads(2)
x = torch.randn(n, d)
def call(x):
    return rbf_repulsion(x, float(d)) if op == "rbf_repulsion" else median_sq_distance(x)
call(x[: n // 4])
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
results = 4 * n * (d + 1) if op == "rbf_repulsion" else 0
resource.setrlimit(resource.RLIMIT_AS, (in_use + results + (extra << 20),) * 2)
call(x)
print("done")
"""


@pytest.mark.parametrize(
    ("op", "n", "d"),
    [
        # A float for each pair would be 288 MB
        ("rbf_repulsion", 12_000, 64),
        ("rbf_repulsion", 12_000, 4),
        ("rbf_repulsion", 2000, 2000),
        ("median_sq_distance", 12_000, 64),
        pytest.param("rbf_repulsion", 60_000, 4, marks=pytest.mark.slow),
        pytest.param("rbf_repulsion", 200_000, 4, marks=pytest.mark.slow),
        pytest.param("rbf_repulsion", 100_000, 64, marks=pytest.mark.slow),
        pytest.param("median_sq_distance", 200_000, 4, marks=pytest.mark.slow),
    ],
)
def test_extra_memory_is_at_most_64_megabytes(op, n, d):
    done = run(BOUNDED, op, str(n), str(d), "64")
    assert done.stdout.strip() == "done", done.stderr[-2000:]


def test_the_memory_of_a_convolution_does_not_grow_with_the_image():
    program = (
        "import resource, torch\n"
        "from fastrepulse.layers.convolutions import conv3x3\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(1, 400, 400, 32).permute(0, 3, 1, 2)\n"
        "weight = torch.randn(32, 3, 3, 32).permute(0, 3, 1, 2)\n"
        "conv3x3(x[..., :40, :40], weight, None)\n"
        "in_use = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "result = 4 * x.numel()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (in_use + result + (16 << 20),) * 2)\n"
        "conv3x3(x, weight, None)\n"
        "print('done')"
    )
    done = run(program)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.mark.slow
def test_two_hundred_thousand_particles_in_two_gigabytes():
    program = (
        "import resource, torch\n"
        "from fastrepulse.kernels import rbf_repulsion\n"
        "x = torch.randn(200_000, 4)\n"
        "rbf_repulsion(x[:100], 4.0)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)\n"
        "force, similarity = rbf_repulsion(x, 4.0)\n"
        "some = torch.arange(0, 200_000, 4001)\n"
        "k = torch.exp(torch.cdist(x[some], x).square() / -4)\n"
        "torch.testing.assert_close(similarity[some], k.sum(1), rtol=1e-4, atol=0)\n"
        "print('done')"
    )
    done = run(program)
    assert done.stdout.strip() == "done", done.stderr[-2000:]
