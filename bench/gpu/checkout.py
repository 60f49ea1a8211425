"""Makes the package importable from a checkout that is not installed. Import this module first.

Missing dependencies can be put in build/site (pip install --no-deps --target build/site diffusers
...). Installed packages take precedence.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path.append(str(ROOT / "build" / "site"))

if find_spec("fastrepulse") is None:
    sys.path.insert(0, str(ROOT))

if find_spec("fastrepulse.triton_kernels") is None and find_spec("triton"):
    # An installed package maps this folder to fastrepulse.triton_kernels
    folder = ROOT / "triton_kernels"
    spec = spec_from_file_location(
        "fastrepulse.triton_kernels",
        folder / "__init__.py",
        submodule_search_locations=[str(folder)],
    )
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
