# SPDX-License-Identifier: Apache-2.0
"""Tree attention as compiled for sm_90, with wgmma. `make test-hopper` runs all operators so."""

from __future__ import annotations

import re

import pytest
import torch
import triton
from attention_cases import excess, make
from each import BACKENDS, DEVICE

if "triton" not in BACKENDS or DEVICE == "cuda":
    pytest.skip("runs in the emulator", allow_module_level=True)

import ptx_emulator

BF16, F16 = torch.bfloat16, torch.float16
VERSION = [int(n) for n in re.findall(r"\d+", triton.__version__)[:3]]
FENCED = VERSION >= [3, 7, 1]  # else such tiles are not used


@pytest.mark.parametrize("wgmma, options", [
    (True, dict(dtype=BF16, nodes=[20, 30], head=64)),
    (True, dict(dtype=F16, nodes=[70], head=128, prefixes=[90], window=70, softcap=9.0, sinks=True)),
    (True, dict(dtype=BF16, nodes=[40, 3], head=80, cache=torch.float8_e4m3fn, new=True, layout="HND")),
    (False, dict(dtype=BF16, nodes=[3], head=576, latent=512, heads=1, group=16, prefixes=[70])),
    (False, dict(nodes=[20, 5], head=96, cache=torch.int8)),
])  # fmt: skip
def test_attention_for_sm_90(options, wgmma):
    problem = make(page_size=16, **dict(prefixes=[150, 20], group=4) | options)
    rounded = options.get("dtype")
    with ptx_emulator.active(90, races=True), ptx_emulator.count() as launches:
        for deterministic in (False, True):
            got = problem.run("triton", deterministic=deterministic)
            assert excess(problem, got, weights=rounded) <= 1
    assert not (wgmma and FENCED) or "wgmma.mma_async" in launches[0].ptx
