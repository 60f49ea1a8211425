"""The kernels on a GPU: roofs, correctness against float64, and timings beside plain PyTorch.

Needs nothing but PyTorch and a checkout, no network and no installation:

    python3 setup.py build_ext --inplace    # the CUDA kernels, where there is nvcc
    python3 -m bench.kernels.gpu --out bench/results

Rows are written as they come, so that a run that is cut off keeps them. `--device cpu --smoke` runs
every section on small shapes.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.kernels import checkout  # isort: skip

import fastrepulse
from fastrepulse.kernels import dispatch, median_rbf_repulsion, median_sq_distance, rbf_repulsion
from fastrepulse.kernels.reference import median_rank

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative error of the force allowed against float64 of the same input."""

CHECKED = [(2, 1), (7, 3), (64, 64), (127, 2080), (128, 16384), (129, 2080), (1000, 1023)]
# What says most comes first, for a run that is cut off
TIMED = [(4096, 768), (10_000, 64), (100_000, 64), (1024, 64), (256, 16384), (64, 64)]
TIMED += [(n, d) for n in (16, 128, 256, 1024, 4096) for d in (64, 2080, 16384)]
TIMED += [(10_000, 16), (10_000, 768), (64, 16384)]
STORABLE = 2**28
"""Pairs above which plain PyTorch is not asked to store them."""


def two_products(x: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """The force and similarity as two matrix products in plain PyTorch, which store N x N."""
    norms = x.square().sum(dim=1)
    distances = (norms[:, None] + norms - 2 * x @ x.mT).clamp_min(0)
    k = torch.exp(distances / -h)
    total = k.sum(dim=1)
    return (2 / h) * (total[:, None] * x - k @ x), total


def exact(x: Tensor, h: float) -> Tensor:
    """The force in float64, in blocks of rows."""
    x = x.double()
    x = x - x.mean(dim=0)
    parts = []
    for rows in x.split(512):
        d = torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist").square()
        k = torch.exp(d / -h)
        parts.append((2 / h) * (k.sum(dim=1, keepdim=True) * rows - k @ x))
    return torch.cat(parts)


def milliseconds(call: Callable[[], Any], device: str, repeats: int = 7) -> tuple[float, float]:
    """Median and spread of one call, by events on a GPU."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            begin = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times), max(times) - min(times)


def versions(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """What was measured on, and how fast it copies and multiplies."""
    # The name of what the tensors lie on: on a machine with a GPU they may lie elsewhere
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    yield {"what": "device", "name": name, "torch": torch.__version__, "python": sys.version[:6]}
    for backend in dispatch.BACKENDS:
        yield {"what": "backend", "name": backend, "serves": dispatch.describe(backend, device)}
    size = 256 if smoke else 8192
    source = torch.randn(size, 8 * size, device=device)
    target = torch.empty_like(source)
    ms, _ = milliseconds(lambda: target.copy_(source), device)
    yield {"what": "copy", "GB/s": 2 * source.nbytes / ms / 1e6}
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(size, size, device=device, dtype=dtype)
        ms, _ = milliseconds(partial(torch.matmul, a, a), device)
        kind = "tf32" if tf32 else str(dtype)[6:]
        yield {"what": f"product {kind}", "TFLOP/s": 2 * size**3 / ms / 1e9}
    torch.backends.cuda.matmul.allow_tf32 = False
    ms, _ = milliseconds(lambda: torch.exp(source, out=target), device)
    yield {"what": "exponentials", "G/s": source.numel() / ms / 1e6}


def backends_on(device: str, dtype: torch.dtype) -> list[str]:
    return [b for b in ("native", "triton") if dispatch.why_not(b, device, dtype) is None]


def correctness(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """Every kernel against float64 of the same input, and against itself, bit for bit."""
    for n, d in CHECKED[:3] if smoke else CHECKED:
        for dtype in TOLERANCE:
            x = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(device, dtype)
            others = torch.randn(n + 5, d, generator=torch.Generator().manual_seed(d)).to(x)
            weights = torch.rand(n + 5, device=device)
            rank = median_rank(n)
            median = torch.pdist(x.double().cpu()).square().kthvalue(rank + 1).values.item()
            h = median / torch.tensor(float(n)).log().item()
            truth = exact(x, h)
            both = rbf_repulsion(x.double(), h, others.double(), weights, backend="reference")[0]
            for backend in backends_on(device, dtype):
                force, _ = rbf_repulsion(x, h, backend=backend)
                again, _ = rbf_repulsion(x, h, backend=backend)
                joint, _, bandwidth = median_rbf_repulsion(x, backend=backend)
                weighted, _ = rbf_repulsion(x, h, others, weights, backend=backend)
                found = median_sq_distance(x, backend=backend).item()
                errors = {
                    "force": relative(force, truth),
                    "weighted": relative(weighted, both),
                    "joint": relative(joint, exact(x, bandwidth.item())),
                    "median": abs(found - median) / median,
                }
                row = {"what": "error", "backend": backend, "N": n, "d": d, "dtype": str(dtype)[6:]}
                yield {**row, **errors, "repeats": torch.equal(force, again)}
                if max(errors.values()) > TOLERANCE[dtype] or not torch.equal(force, again):
                    raise AssertionError(f"wrong on this device: {row}, {errors}")


def relative(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def providers(x: Tensor, smoke: bool) -> dict[str, Callable[[], Any]]:
    """What computes the force on embeddings [N, d] at h = 2 d, and at the median's h."""
    h, device = 2.0 * x.shape[1], x.device.type
    calls: dict[str, Callable[[], Any]] = {}
    for b in backends_on(device, x.dtype):
        calls[b] = partial(rbf_repulsion, x, h, backend=b)
        calls[f"{b}, median"] = partial(median_rbf_repulsion, x, backend=b)
    if len(x) ** 2 <= STORABLE:
        calls["two products"] = partial(two_products, x, h)
        if x.dtype == torch.float32 and device == "cuda":
            calls["two products, tf32"] = partial(with_tf32, two_products, x, h)
        if x.shape in ((1024, 64), (4096, 768)) and not smoke:
            calls["two products, compiled"] = partial(
                torch.compile(two_products, dynamic=False), x, h
            )
    return calls


def kernels(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """The force at a given bandwidth, and at the median's: ours beside plain PyTorch."""
    for n, d in [(64, 64), (256, 64)] if smoke else TIMED:
        for dtype in (torch.float32,) if smoke else (torch.float32, torch.bfloat16):
            x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            for provider, call in providers(x, smoke).items():
                before = 0
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                ms, spread = milliseconds(call, device)
                row = {"what": "force", "provider": provider, "N": n, "d": d}
                row |= {"dtype": str(dtype)[6:], "ms": ms, "spread": spread}
                if device == "cuda":
                    row["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
                yield row


def with_tf32(call: Callable[[Tensor, float], Any], x: Tensor, h: float) -> Any:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return call(x, h)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def sampling(device: str, smoke: bool) -> Iterator[dict[str, Any]]:
    """The shipped model, independent and repelled: seconds of a call, and pictures a second."""
    if find_spec("diffusers") is None:
        yield {"what": "sampling", "skipped": "diffusers is not installed"}
        return
    for count, steps in [(4, 2)] if smoke else [(64, 25), (4096, 10)]:
        for name, repulsion in (("independent", None), ("repelled", fastrepulse.Repulsion())):
            for run in ("first", "second"):
                begin = time.perf_counter()
                fastrepulse.sample(
                    "a potted plant",
                    count,
                    repulsion=repulsion,
                    num_inference_steps=steps,
                    seed=0,
                    device=device,
                    micro_batch_size=min(count, 256),
                    compile=False,
                    progress=False,
                )
                seconds = time.perf_counter() - begin
                row = {"what": "sampling", "provider": name, "run": run, "N": count, "T": steps}
                yield {**row, "seconds": seconds, "pictures/s": count / seconds}


SECTIONS = {
    "versions": versions,
    "correctness": correctness,
    "kernels": kernels,
    "sampling": sampling,
}


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown, a table for each kind."""
    lines = ["# Kernels on a GPU", "", "Made by `bench/kernels/gpu.py`.", ""]
    for what in dict.fromkeys(row["what"].split()[0] for row in rows):
        own = [row for row in rows if row["what"].split()[0] == what]
        names = list(dict.fromkeys(name for row in own for name in row))
        lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for row in own:
            cells = (row.get(name, "") for name in names)
            shown = (f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells)
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--smoke", action="store_true", help="Small shapes, to try the script.")
    parser.add_argument("--seconds", type=float, default=570, help="No row is begun after these.")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=checkout.ROOT / "bench" / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    begin, rows = time.monotonic(), []
    with (args.out / "gpu.jsonl").open("w") as log:
        for name in args.sections:
            for row in SECTIONS[name](args.device, args.smoke):
                rows.append(row)
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(row, flush=True)
                if time.monotonic() - begin > args.seconds:
                    break
            (args.out / "gpu.md").write_text(table(rows))
            if time.monotonic() - begin > args.seconds:
                break


if __name__ == "__main__":
    main()
