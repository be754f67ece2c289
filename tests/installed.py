# SPDX-License-Identifier: Apache-2.0
"""`python tests/installed.py [BACKEND]`: the installed package verifies on the CPU by the backend that it was built
with, or by `BACKEND`. Needs nothing but the package."""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec

import torch

import specdec_kernels as sdk

assert sdk.__version__ == version("specdec-kernels")
native = find_spec("specdec_kernels.cpu._native") is not None
assert sdk.explain().startswith("cpu: native extension") == native
backend = sys.argv[1] if len(sys.argv) > 1 else "cpu" if native else "reference"
target = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
tree = sdk.DraftTree.chain(torch.tensor([[1, 0]]))
verified = sdk.verify(target, tree, sampling=sdk.SamplingParams(temperature=0.0), backend=backend)
assert verified.tokens.tolist() == [[1, 2, -1]]
print(f"specdec_kernels {sdk.__version__} in {sdk.__path__[0]} verifies by {backend}")
