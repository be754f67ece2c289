# SPDX-License-Identifier: Apache-2.0
"""`python tests/installed.py`: the installed package verifies on the CPU, natively if it was so built, and
brings the C interface then.

Needs nothing but the package. With `SPECDEC_NO_CPP=1` it must be a package without the native backend.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import torch

import specdec_kernels as sdk

assert sdk.__version__ == version("specdec-kernels")
native = sdk.explain().startswith("cpu: native extension")
assert native == (os.environ.get("SPECDEC_NO_CPP", "0") in ("", "0"))
if native:
    package = Path(sdk.__path__[0])
    library = ctypes.CDLL(next((package / "lib").glob("libspecdec.*")))
    library.specdec_version.restype = ctypes.c_char_p
    assert library.specdec_version().decode() == sdk.__version__
    assert "specdec_verify(" in (package / "include" / "specdec.h").read_text()
backend = "cpu" if native else "reference"
target = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
tree = sdk.DraftTree.chain(torch.tensor([[1, 0]]))
verified = sdk.verify(target, tree, sampling=sdk.SamplingParams(temperature=0.0), backend=backend)
assert verified.tokens.tolist() == [[1, 2, -1]]
plugin = entry_points(group="vllm.general_plugins")["specdec_kernels"]
os.environ.pop("SPECDEC_VLLM", None)
plugin.load()()
assert "vllm" not in sys.modules
print(f"specdec_kernels {sdk.__version__} in {sdk.__path__[0]} verifies by {backend}")
