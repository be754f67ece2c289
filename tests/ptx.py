# SPDX-License-Identifier: Apache-2.0
"""PTX written by hand, for tests of the emulator."""

from __future__ import annotations

import numpy as np
import torch

import ptx_emulator
from ptx_emulator.values import TYPES, raw

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 memory[];\n"
REGISTERS = """
    .reg .pred %p<8>;
    .reg .b16 %rs<16>;
    .reg .b32 %r<32>;
    .reg .b64 %rd<32>;
"""


def kernel(body: str, pointers: int = 0, threads: int = 32) -> str:
    """A kernel `snippet` with pointers p0, p1, ... in %rd0, %rd1, ...; %r0 is the thread."""
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 p{i}" for i in range(pointers))
    loads = "\n".join(f"ld.param.b64 %rd{i}, [p{i}];" for i in range(pointers))
    begin = f"{REGISTERS}\n{loads}\nmov.u32 %r0, %tid.x;\n"
    return f"{HEAD}.visible .entry snippet({parameters})\n.reqntid {threads}\n{{\n{begin}{body}\nret;\n}}\n"


def run(body: str, *tensors: torch.Tensor, threads: int = 32, grid: int = 1, shared: int = 1024) -> None:
    """Run a body on tensors, with races checked."""
    with ptx_emulator.active(80, races=True, bounds="view", reach="mapped"):
        ptx_emulator.run(kernel(body, len(tensors), threads), (grid, 1, 1), *tensors, shared=shared)


def bits(values: list, type_: str) -> np.ndarray:
    """Values of a type as the bits of a register. Those of bf16 and packed types are bits already."""
    if type_ == "pred":
        return np.array(values, np.uint8)
    dtype = TYPES[type_]
    if dtype.kind == "f":
        return np.array(values, dtype).view(raw(type_))
    return np.array([int(value) & ((1 << 8 * dtype.itemsize) - 1) for value in values], raw(type_))


def evaluate(
    instruction: str, types: list[str], result: str, inputs: list[list], mode: str = "lanes"
) -> np.ndarray:
    """What an instruction leaves in %d, given %a, %b, ... of these types: 32 lanes at once.

    Args:
        mode: "lanes": a value per lane; "uniform": the first lane's for all; "odd": a value per lane, and the
            instruction is executed by odd lanes only, over a %d of 0.
    """
    names = "abcef"[: len(types)]
    declared, loads, tensors = [], [], []
    for place, (name, type_, values) in enumerate(zip(names, types, inputs, strict=True)):
        size = 1 if type_ == "pred" else raw(type_).itemsize
        full = np.ascontiguousarray(np.resize(bits(values, type_), 32))
        tensors.append(torch.from_numpy(full.view(np.uint8).copy()))
        register = {"pred": "pred", 1: "b16"}.get("pred" if type_ == "pred" else size, f"b{8 * size}")
        declared.append(f".reg .{register} %{name};")
        loads.append(f"mov.b64 %at, %rd{place + 1};")
        if mode != "uniform":
            loads.append(f"mad.wide.u32 %at, %r0, {size}, %rd{place + 1};")
        if type_ == "pred":
            loads.append(f"ld.global.b8 %rs0, [%at];\nsetp.ne.u16 %{name}, %rs0, 0;")
        else:
            loads.append(f"ld.global.b{8 * size} %{name}, [%at];")
    size = 4 if result == "pred" else raw(result).itemsize
    out = np.zeros(32, raw("b32" if result == "pred" else result))
    tensors.insert(0, torch.from_numpy(out.view(np.uint8)))
    register = "pred" if result == "pred" else f"b{8 * max(size, 2)}"
    store = "selp.b32 %r1, 1, 0, %d;\nst.global.b32 [%at], %r1;"
    if result != "pred":
        store = f"st.global.b{8 * size} [%at], %d;"
    clear = "setp.ne.u32 %d, 0, 0;" if result == "pred" else f"mov.{register} %d, 0;"
    odd = "and.b32 %r2, %r0, 1;\nsetp.eq.u32 %p0, %r2, 1;"
    body = "\n".join(
        [
            f".reg .b64 %at;\n.reg .{register} %d;",
            *declared,
            *loads,
            clear,
            odd,
            ("@%p0 " if mode == "odd" else "") + instruction,
            f"mad.wide.u32 %at, %r0, {size}, %rd0;",
            store,
        ]
    )
    run(body, *tensors)
    return out.astype(bool) if result == "pred" else out.view(TYPES[result])
