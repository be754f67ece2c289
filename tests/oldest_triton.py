# SPDX-License-Identifier: Apache-2.0
"""Compiles forms of every kernel for sm_90 with the Triton that is imported: the first and the last one of
every number of warps. Prints the version and what was compiled. `test_triton_oldest.py` runs this."""

from __future__ import annotations

import json

import triton

from bench.gpu import targets, variants

SM_90 = next(processor for processor in targets.PROCESSORS if processor.name == "sm_90")


def compiled() -> dict[str, int]:
    """Kernels by name, and the most registers that one of their forms takes."""
    forms = targets.kernels(SM_90, variants.calls())
    ends = ({(kernel.name, kernel.warps): kernel for kernel in order} for order in (forms, reversed(forms)))
    most: dict[str, int] = {}
    for kernel in [kernel for end in ends for kernel in end.values()]:
        most[kernel.name] = max(most.get(kernel.name, 0), targets.build(kernel).registers)
    return most


if __name__ == "__main__":
    print(json.dumps({"version": triton.__version__, "registers": compiled()}))
