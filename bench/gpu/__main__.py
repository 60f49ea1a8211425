"""All checks and timings on a GPU: peak rates, correctness, races, kernels, whole runs.

Needs only PyTorch and a checkout, without network or installation. The sections that draw images
also need diffusers (see `checkout`).

    python3 setup.py build_ext --inplace    # the CUDA kernels, if nvcc is installed
    python3 -m bench.gpu --out bench/results

Rows are written one by one, so a stopped run keeps them. If a section fails, the others still run,
unless a kernel is wrong. `--device cpu --smoke` runs every section on small shapes.
"""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from bench.gpu import checkout  # isort: skip
from bench.gpu import kernels, report
from bench.gpu.denoising import recovery, sampling, unet
from bench.gpu.sanitizer import sanitizer

SECTIONS = {
    "versions": kernels.versions,
    "correctness": kernels.correctness,
    "sanitizer": sanitizer,
    "kernels": kernels.kernels,
    "unet": unet,
    "sampling": sampling,
    "recovery": recovery,
}

DECISIVE = ("correctness", "sanitizer")
"""If one of these sections fails, the script stops."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--smoke", action="store_true", help="Use small shapes, to try the script.")
    parser.add_argument(
        "--seconds", type=float, default=570, help="Time limit of all sections together."
    )
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=checkout.ROOT / "bench" / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin, rows, failed = time.monotonic(), [], []
    with (args.out / "gpu.jsonl").open("w") as log:

        def write(row: dict[str, Any]) -> None:
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(row, flush=True)

        for number, name in enumerate(args.sections):
            # The remaining time is split between the remaining sections; no row starts after it
            now = time.monotonic()
            until = now + (begin + args.seconds - now) / (len(args.sections) - number)
            try:
                for row in SECTIONS[name](args.device, args.smoke):
                    write(row)
                    if time.monotonic() > until:
                        write({"what": "cut off", "section": name})
                        break
            except Exception as error:
                traceback.print_exc()
                failed.append(name)
                write({"what": "failed", "section": name, "error": str(error)[:300]})
            (args.out / "gpu.md").write_text(report.table(rows))
            if name in failed and name in DECISIVE:
                break
    if not report.plot(rows, args.out / "gpu.png"):
        print("no plot: matplotlib is not installed")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
