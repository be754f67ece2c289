# SPDX-License-Identifier: Apache-2.0
"""Tensor cores of sm_90: wgmma, by which four warps multiply matrices in shared memory, and the fence that
orders what threads wrote there before it. Products are summed in float32."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..asynchronous import WARPGROUP, InFlight
from ..errors import PTXError
from ..parse import Instruction, elements
from ..values import high, low, pack
from .matrix import decode
from .movement import nothing
from .step import Step, instruction

ROWS = 64
DEPTHS = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}  # 32 bytes
SWIZZLES = (1, 8, 4, 2)  # by a descriptor's two upper bits: chunks of 16 bytes in a row of the pattern


@instruction("fence")
def fence(ins: Instruction) -> Step:
    """Memory is sequentially consistent here, but for what wgmma sees of it."""
    if "proxy" not in ins.modifiers:
        return nothing(ins)
    if "async" not in ins.modifiers:
        raise PTXError("a proxy")

    def run(group, lanes):
        if group.batch.proxy:
            group.batch.proxy.fence(group.pick(group.threads, lanes))

    return Step(run, [], [], effect=True)


@instruction("wgmma")
def wgmma(ins: Instruction) -> Step:
    if "mma_async" in ins.modifiers:
        return _mma(ins)
    if "commit_group" in ins.modifiers:
        return Step(_commit, [], [], effect=True)
    if "wait_group" in ins.modifiers:
        ahead = int(ins.operands[0])
        return Step(lambda group, lanes: _wait(group, lanes, ahead), [], [], effect=True)
    if "fence" in ins.modifiers:
        return nothing(ins)  # `Program` checks that it is there
    raise PTXError("a form of wgmma")


def _warpgroups(group, lanes) -> np.ndarray:
    """The numbers of the warpgroups in a group of threads; all of their threads must take part."""
    thread = group.pick(group.threads, lanes)
    first = thread[::WARPGROUP]
    whole = len(thread) % WARPGROUP == 0 and group.batch.per_cta % WARPGROUP == 0
    if not whole or (first % WARPGROUP).any() or (thread[WARPGROUP - 1 :: WARPGROUP] - first > 127).any():
        raise PTXError("inactive lanes in an instruction of the whole warpgroup")
    return first // WARPGROUP


def _commit(group, lanes) -> None:
    group.batch.proxy.committed[_warpgroups(group, lanes)] += 1


def _wait(group, lanes, ahead: int) -> None:
    """Groups but for the last `ahead` are complete, and their registers can be read."""
    warpgroup, proxy = _warpgroups(group, lanes), group.batch.proxy
    proxy.complete[warpgroup] = np.maximum(proxy.complete[warpgroup], proxy.committed[warpgroup] - ahead)
    complete = np.repeat(proxy.complete[warpgroup], WARPGROUP)
    for slot, value in enumerate(group.registers):
        if isinstance(value, InFlight) and (value.group < complete).all():
            group.registers[slot] = value.values


class Matrix(NamedTuple):
    """A matrix in shared memory as an instruction reads it: `rows` of A, or of B transposed, by 32 bytes."""

    rows: int
    form: str
    transposed: bool  # in memory rows lie next to each other, not what is summed over

    def places(self, descriptor: np.ndarray) -> np.ndarray:
        """Of descriptors [n]: the addresses of the chunks of 16 bytes, [n, chunks]."""
        field = lambda bit: ((descriptor >> np.uint64(bit)).astype(np.int64) & 0x3FFF) << 4  # noqa: E731
        start, leading, stride = field(0), field(16), field(32)
        if ((descriptor >> np.uint64(49)) & np.uint64(7)).any():
            raise PTXError("a base offset in a descriptor of wgmma")
        width = np.array(SWIZZLES)[(descriptor >> np.uint64(62)).astype(np.int64)]
        if (width != width[0]).any():
            raise PTXError("warpgroups with different swizzles")
        width = int(width[0])
        leading, stride = leading[:, None, None], stride[:, None, None]
        if self.transposed:  # chunks of 8 rows; each of 16 that are summed over has its own
            chunk, k = np.arange(self.rows // 8)[:, None], np.arange(16)
            inner = chunk % width * 16 + k % 8 * width * 16
            if width == 1:
                offset = inner + chunk * stride + k // 8 * leading
            else:
                offset = inner + chunk // width * leading + k // 8 * stride
        else:
            row, chunk = np.arange(self.rows)[:, None], np.arange(2)
            offset = row % 8 * width * 16 + row // 8 * stride + chunk * (leading if width == 1 else 16)
        address = start[:, None, None] + offset
        return (address ^ ((address >> 7 & width - 1) << 4)).reshape(len(descriptor), -1)

    def read(self, group, warpgroup: np.ndarray, descriptor: np.ndarray) -> np.ndarray:
        """[n, rows, depth] as float32."""
        descriptor = group.full(descriptor).reshape(-1, WARPGROUP)
        if (descriptor != descriptor[:, :1]).any():
            raise PTXError("a warpgroup with different descriptors")
        shared, address = group.batch.shared, self.places(descriptor[:, 0])
        n, chunks = address.shape
        cta = np.repeat(warpgroup * WARPGROUP // group.batch.per_cta, chunks)
        place = shared.places(address.reshape(-1), cta, 16).reshape(n, chunks)
        group.batch.proxy.read(warpgroup, place)
        words = shared.bytes[8][(place >> 3)[..., None] + np.arange(2)].view(np.uint32)
        numbers = decode(words, self.form)
        if self.transposed:
            return numbers.reshape(n, self.rows // 8, 16, 8).swapaxes(2, 3).reshape(n, self.rows, 16)
        return numbers.reshape(n, self.rows, -1)


def _fragments(group, words: list[np.ndarray], form: str) -> np.ndarray:
    """A from registers, as those of mma.sync in each of the four warps: [n, 64, depth]."""
    stacked = np.stack([group.full(word).reshape(-1, 4, 8, 4) for word in words], 2)
    numbers = decode(stacked, form)  # [n, warp, register, row, quad, each]
    n, _, _, _, _, each = numbers.shape
    numbers = numbers.reshape(n, 4, 2, 2, 8, 4, each)  # registers: later columns, lower rows
    return numbers.transpose(0, 1, 3, 4, 2, 5, 6).reshape(n, ROWS, -1)


def _mma(ins: Instruction) -> Step:
    """D = A B + D for m64: A from shared memory or registers, B from shared memory."""
    shape = next(name for name in ins.modifiers if re.fullmatch(r"m\d+n\d+k\d+", name))
    rows, columns, depth = map(int, re.findall(r"\d+", shape))
    sum_type, a_form, b_form = ins.modifiers[-3:]
    targets, a_names = elements(ins.operands[0]), elements(ins.operands[1])
    in_registers = ins.operands[1].startswith("{")
    known = rows == ROWS and depth == DEPTHS[a_form] == DEPTHS[b_form] and sum_type in ("f32", "f16", "s32")
    if not known or ins.guard or len(targets) != columns // (4 if sum_type == "f16" else 2):
        raise PTXError("a shape or type of wgmma")
    signs = [int(sign) for sign in ins.operands[4:6]]
    turned = [bool(int(flag)) for flag in ins.operands[6:]]
    a_matrix = Matrix(ROWS, a_form, not in_registers and turned[:1] == [True])
    b_matrix = Matrix(columns, b_form, turned[-1:] == [True])

    def run(group, lanes, adds, b_descriptor, *words):
        warpgroup, number = _warpgroups(group, lanes), group.batch.proxy.committed
        if in_registers:
            a = _fragments(group, list(words[: len(a_names)]), a_form)
        else:
            a = a_matrix.read(group, warpgroup, words[0])
        b = b_matrix.read(group, warpgroup, b_descriptor)
        product = np.einsum("nik,nkj->nij", a, np.ascontiguousarray(b.swapaxes(1, 2)))
        product *= np.prod(signs, dtype=np.float32)
        group.tally("mma", 4 * len(a))
        # A register: columns 8j and on, upper or lower 8 rows of a warp's 16, one or the other of a pair.
        parts = product.reshape(-1, 4, 2, 8, columns // 8, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5)
        parts = parts.reshape(columns // 2, group.size)
        sums = [value.values if isinstance(value, InFlight) else group.full(value) for value in words[-n:]]
        results = _added(parts, sums if _all_add(adds) else None, sum_type)
        waits = np.repeat(number[warpgroup], WARPGROUP)
        return tuple(InFlight(value, waits) for value in results)

    n = len(targets)
    a_sources = [(name, "b32" if in_registers else "b64") for name in a_names]
    sources = [(ins.operands[3], "pred"), (ins.operands[2], "b64"), *a_sources]
    registers = [(name, "b32") for name in targets]
    return Step(run, sources + registers, registers, effect=True)


def _all_add(adds: np.ndarray) -> bool:
    """Whether what D holds is added: one answer for all threads."""
    if adds.ndim and adds.any() != adds.all():
        raise PTXError("warpgroups that add and others that do not")
    return bool(adds.all())


def _added(parts: np.ndarray, sums: list[np.ndarray] | None, sum_type: str) -> list[np.ndarray]:
    """Registers of products, with what they held before added."""
    if sum_type == "f16":
        if sums is not None:
            parts = parts + np.stack([half(word).view(np.float16) for word in sums for half in (low, high)])
        halves = parts.astype(np.float16).view(np.uint16)
        return [pack(halves[j], halves[j + 1]) for j in range(0, len(halves), 2)]
    dtype = np.float32 if sum_type == "f32" else np.int32
    parts = parts.astype(dtype)
    if sums is not None:
        parts = parts + np.stack(sums).view(dtype)
    return list(parts.view(np.uint32))
