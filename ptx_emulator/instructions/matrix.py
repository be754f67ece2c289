# SPDX-License-Identifier: Apache-2.0
"""Tensor cores of sm_80: mma.sync, ldmatrix, and stmatrix. Products are summed in float32."""

from __future__ import annotations

import re

import numpy as np

from ..errors import PTXError
from ..parse import Instruction, elements
from ..values import FP8, TYPES, from_bf16, high, low, pack
from .step import ADDRESS, Step, instruction

ROW, QUAD = np.arange(32) >> 2, np.arange(32) & 3  # a lane's row of a fragment, and its place in the row
PER_REGISTER = {"f16": 2, "bf16": 2, "tf32": 1, "s8": 4, "u8": 4, "e4m3": 4, "e5m2": 4}


def warps(group, lanes, value: np.ndarray) -> np.ndarray:
    """Values as [warps, 32]; all lanes of a warp must take part."""
    value = group.pick(group.full(value), lanes)
    if lanes is None and group.whole_warps:
        return value.reshape(-1, 32)
    thread = group.pick(group.threads, lanes)
    if len(thread) % 32 or (thread.reshape(-1, 32) != thread[::32, None] + np.arange(32)).any():
        raise PTXError("inactive lanes in an instruction of the whole warp")
    return value.reshape(-1, 32)


def decode(words: np.ndarray, form: str) -> np.ndarray:
    """Registers to the numbers they hold, [..., per register], as float32."""
    if form == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None]  # the unit drops the low bits
    words = np.ascontiguousarray(words)[..., None]
    if form == "bf16":
        return from_bf16(words.view(np.uint16))
    if form in FP8:
        return FP8[form][words.view(np.uint8)]
    return words.view({"f16": np.float16, "s8": np.int8, "u8": np.uint8}[form]).astype(np.float32)


@instruction("mma")
def mma(ins: Instruction) -> Step:
    """D = A B + C for m16n8: fragments as PTX draws them."""
    shape = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", next(m for m in ins.modifiers if re.match(r"m\d", m)))
    rows, columns, depth = map(int, shape.groups())
    _, a_form, b_form, sum_type = ins.modifiers[-4:]
    if sum_type == "f64" and (rows, columns, depth) == (8, 8, 4):
        return _mma_f64(ins)
    if (rows, columns) != (16, 8) or sum_type not in ("f16", "f32", "s32"):
        raise PTXError("a shape or type of mma")
    a_count, b_count, dtype = len(elements(ins.operands[1])), len(elements(ins.operands[2])), TYPES[sum_type]
    a_each, b_each = PER_REGISTER[a_form], PER_REGISTER[b_form]

    def run(group, lanes, *values):
        words = [warps(group, lanes, value) for value in values]
        n = len(words[0])
        a = decode(np.stack(words[:a_count], 1), a_form).reshape(n, a_count // 2, 2, 8, 4, a_each)
        a = a.transpose(0, 2, 3, 1, 4, 5).reshape(n, 16, depth)  # registers: lower rows, then later columns
        b = decode(np.stack(words[a_count : a_count + b_count], 1), b_form).reshape(n, b_count, 8, 4, b_each)
        b = b.transpose(0, 1, 3, 4, 2).reshape(n, depth, 8)
        # Unlike those of matmul, sums that are the same wherever in the tile a row stands.
        product = np.einsum("nik,nkj->nij", a, b).reshape(n, 2, 8, 4, 2)
        group.tally("mma", n)
        sums = words[a_count + b_count :]
        parts = [product[:, j >> 1, :, :, j & 1].reshape(n, 32) for j in range(4)]
        if sum_type == "f16":
            halves = [half(word).view(np.float16) for word in sums for half in (low, high)]
            parts = [
                (part + c).astype(np.float16).view(np.uint16) for part, c in zip(parts, halves, strict=True)
            ]
            return tuple(pack(*parts[2 * j : 2 * j + 2]).reshape(-1) for j in range(2))
        return tuple((part.astype(dtype) + c).reshape(-1) for part, c in zip(parts, sums, strict=True))

    sources = [(name, "b32") for place in (1, 2) for name in elements(ins.operands[place])]
    word = "b32" if sum_type == "f16" else sum_type
    sources += [(name, word) for name in elements(ins.operands[3])]
    return Step(run, sources, [(name, word) for name in elements(ins.operands[0])], effect=True)


def _mma_f64(ins: Instruction) -> Step:
    """m8n8k4: a number of A and of B per lane, two of C."""

    def run(group, lanes, *values):
        a, b, *sums = (warps(group, lanes, value) for value in values)
        product = np.matmul(a.reshape(-1, 8, 4), b.reshape(-1, 8, 4).swapaxes(1, 2)).reshape(-1, 32, 2)
        group.tally("mma", len(a))
        return tuple((product[:, :, j] + sums[j]).reshape(-1) for j in range(2))

    sources = [(name, "f64") for operand in ins.operands[1:] for name in elements(operand)]
    return Step(run, sources, [(name, "f64") for name in elements(ins.operands[0])], effect=True)


def matrix_rows(group, lanes, address: np.ndarray, count: int, kind: str) -> np.ndarray:
    """Lanes 8j to 8j + 7 of a warp hold the addresses of the rows of matrix j. The places of the rows,
    [warps, count, 8]."""
    warps(group, lanes, address)
    here = group.pick(np.arange(group.size), lanes).reshape(-1, 32)[:, : 8 * count].reshape(-1)
    _, place = group.reach("shared", here, group.full(address), 16, kind)
    return place.reshape(-1, count, 8)


def transposed_places(row: np.ndarray, half: int) -> np.ndarray:
    """Where 16-bit elements are that a lane holds of the transposed matrix: the lower or upper half."""
    return (row[:, :, 2 * QUAD + half] >> 1) + ROW


def _count(ins: Instruction) -> int:
    if "b16" not in ins.modifiers or "m8n8" not in ins.modifiers:
        raise PTXError("a form of matrix")
    return int(ins.one_of("x1", "x2", "x4")[1:])


@instruction("ldmatrix")
def ldmatrix(ins: Instruction) -> Step:
    count, transposed = _count(ins), "trans" in ins.modifiers

    def run(group, lanes, address):
        row, shared = matrix_rows(group, lanes, address, count, "ld"), group.batch.shared.bytes
        if transposed:
            words = pack(*(shared[2][transposed_places(row, half)] for half in (0, 1)))
        else:
            words = shared[4][(row[:, :, ROW] >> 2) + QUAD]
        words = tuple(np.ascontiguousarray(words[:, j]).reshape(-1) for j in range(count))
        return words if count > 1 else words[0]

    names = elements(ins.operands[0])
    return Step(run, [(ins.operands[1], ADDRESS)], [(name, "b32") for name in names], effect=True)


@instruction("stmatrix")
def stmatrix(ins: Instruction) -> Step:
    count, transposed = _count(ins), "trans" in ins.modifiers

    def run(group, lanes, address, *values):
        row, shared = matrix_rows(group, lanes, address, count, "st"), group.batch.shared.bytes
        words = np.stack([warps(group, lanes, value) for value in values], 1)
        if transposed:
            for half, part in enumerate((low(words), high(words))):
                shared[2][transposed_places(row, half)] = part
        else:
            shared[4][(row[:, :, ROW] >> 2) + QUAD] = words

    sources = [(ins.operands[0], ADDRESS), *((name, "b32") for name in elements(ins.operands[1]))]
    return Step(run, sources, [], effect=True)
