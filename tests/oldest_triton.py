# SPDX-License-Identifier: Apache-2.0
"""Compiles the last form of every kernel, which has most options, for sm_90 with the Triton that is imported.
Prints the version and what was compiled. `test_triton_oldest.py` runs this."""

from __future__ import annotations

import json

import triton

from bench.gpu import targets, variants

SM_90 = next(processor for processor in targets.PROCESSORS if processor.name == "sm_90")


def compiled() -> dict[str, int]:
    """Kernels by name, and the registers that their last forms take."""
    last = {kernel.name: kernel for kernel in targets.kernels(SM_90, variants.calls())}
    return {name: targets.build(kernel).registers for name, kernel in last.items()}


if __name__ == "__main__":
    print(json.dumps({"version": triton.__version__, "registers": compiled()}))
