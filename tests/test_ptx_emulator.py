# SPDX-License-Identifier: Apache-2.0
"""Triton kernels launched on CPU tensors compute what PyTorch computes; counts are those of their code."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

import ptx_emulator
from ptx_emulator import PTXError

pytestmark = pytest.mark.slow
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def emulator():
    with ptx_emulator.active(80, races=True, bounds="view", reach="mapped"):
        yield


# ---- elements


@triton.jit
def _add_kernel(x, y, out, n, extra, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n)
    if extra is not None:
        total += tl.load(extra)
    tl.store(out + i, total, mask=i < n)


@pytest.mark.parametrize("n", [1, 100, 4096, 5000])
@pytest.mark.parametrize("warps", [1, 4])
def test_addition(n, warps):
    x, y = torch.randn(2, n).unbind()
    out, extra = torch.empty(n), torch.tensor([2.5])
    _add_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, out, n, None, BLOCK=512, num_warps=warps)
    assert torch.equal(out, x + y)
    _add_kernel[(triton.cdiv(n, 512),)](x, y, out, n, extra, BLOCK=512, num_warps=warps)
    assert torch.equal(out, x + y + 2.5)


@triton.jit
def _softmax_kernel(x, out, winner, stride, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + i, mask=i < n, other=-float("inf")).to(tl.float32)
    weight = tl.exp(value - tl.max(value, 0))
    tl.store(out + row * stride + i, weight / tl.sum(weight, 0), mask=i < n)
    tl.store(winner + row, tl.argmax(value, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softmax(dtype):
    x = torch.randn(7, 1016).to(dtype)[:, :1000]
    out, winner = torch.zeros(7, 1016)[:, :1000], torch.zeros(7, dtype=torch.int32)
    _softmax_kernel[(7,)](x, out, winner, x.stride(0), 1000, BLOCK=1024)
    torch.testing.assert_close(out, x.float().softmax(1))
    assert torch.equal(winner.long(), x.argmax(1))


@triton.jit
def _cast_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
EIGHTS = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("to", FLOATS + INTEGERS, ids=str)
@pytest.mark.parametrize("source", FLOATS + INTEGERS, ids=str)
def test_casts(source, to):
    x, out = torch.linspace(-20, 20, 256).to(source), torch.zeros(256, dtype=to)
    _cast_kernel[(1,)](x, out, BLOCK=256)
    assert torch.equal(out, x.to(to))


@pytest.mark.parametrize("arch", [80, 89])
@pytest.mark.parametrize("wide", FLOATS[1:], ids=str)
@pytest.mark.parametrize("eight", EIGHTS, ids=str)
def test_casts_of_eight_bit_floats(eight, wide, arch):
    """Triton has no e4m3 for sm_80."""
    if (eight, arch) == (torch.float8_e4m3fn, 80):
        return
    x, out, back = (
        torch.linspace(-20, 20, 256).to(wide),
        torch.zeros(256, dtype=eight),
        torch.zeros(256, dtype=wide),
    )
    with ptx_emulator.active(arch):
        _cast_kernel[(1,)](x, out, BLOCK=256)
        _cast_kernel[(1,)](out, back, BLOCK=256)
    assert torch.equal(out.float(), x.to(eight).float())
    assert torch.equal(back, x.to(eight).to(wide))


@triton.jit
def _strided_kernel(x, out, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i * stride, mask=i % 3 != 0, other=1), mask=i < BLOCK - 5)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, *INTEGERS, *FLOATS], ids=str)
def test_masked_elements_of_every_width(dtype, stride):
    x, out = torch.randint(0, 2, (512 * stride,)).to(dtype), torch.zeros(512, dtype=dtype)
    _strided_kernel[(1,)](x, out, stride, BLOCK=512)
    want = torch.where(torch.arange(512) % 3 != 0, x[::stride], torch.ones((), dtype=dtype))
    assert torch.equal(out[:-5], want[:-5]) and not out[-5:].any()


@triton.jit
def _math_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    a = tl.abs(v) + 0.1
    tl.store(out + i, tl.exp(v))
    tl.store(out + BLOCK + i, tl.log(a))
    tl.store(out + 2 * BLOCK + i, tl.exp2(v))
    tl.store(out + 3 * BLOCK + i, tl.log2(a))
    tl.store(out + 4 * BLOCK + i, tl.sqrt(a) + tl.rsqrt(a))
    tl.store(out + 5 * BLOCK + i, tl.floor(v) + tl.ceil(v))
    tl.store(out + 6 * BLOCK + i, tl.erf(v))
    tl.store(out + 7 * BLOCK + i, tl.fma(v, v, a) / a)
    tl.store(out + 8 * BLOCK + i, libdevice.log1p(a))
    tl.store(out + 9 * BLOCK + i, libdevice.tanh(v))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)], ids=str)
def test_functions(dtype, tolerance):
    v = 3 * torch.randn(128, dtype=dtype)
    a, out = v.abs() + 0.1, torch.zeros(10, 128, dtype=dtype)
    _math_kernel[(1,)](v, out, BLOCK=128)
    v, a = v.double(), a.double()
    want = [v.exp(), a.log(), v.exp2(), a.log2(), a.sqrt() + a.rsqrt(), v.floor() + v.ceil(), v.erf()]
    want += [(v * v + a) / a, a.log1p(), v.tanh()]
    torch.testing.assert_close(out.double(), torch.stack(want), rtol=tolerance, atol=tolerance)


@triton.jit
def _trigonometry_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.sin(tl.load(x + i)))


def test_lanes_that_reduce_large_angles_part_from_the_others():
    x, out = torch.randn(256) * torch.tensor([1.0, 1e6]).repeat(128), torch.zeros(256)
    _trigonometry_kernel[(1,)](x, out, BLOCK=256)
    torch.testing.assert_close(out.double(), x.double().sin(), rtol=1e-5, atol=1e-6)


@triton.jit
def _integer_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(out + i, v // n)
    tl.store(out + BLOCK + i, v % n)
    tl.store(out + 2 * BLOCK + i, (v >> 3) ^ (v << 2))
    tl.store(out + 3 * BLOCK + i, v // 7)
    tl.store(out + 4 * BLOCK + i, tl.abs(tl.minimum(v, n) * tl.maximum(v, 3)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_integers(dtype):
    x, out = torch.randint(-1000, 1000, (128,)).to(dtype), torch.zeros(5, 128, dtype=dtype)
    _integer_kernel[(1,)](x, out, -13, BLOCK=128)
    assert torch.equal(out[0], torch.div(x, -13, rounding_mode="trunc"))
    assert torch.equal(out[1], torch.fmod(x, -13))
    assert torch.equal(out[2], (x >> 3) ^ (x << 2))
    assert torch.equal(out[3], torch.div(x, 7, rounding_mode="trunc"))
    assert torch.equal(out[4], (x.clamp(max=-13) * x.clamp(min=3)).abs())


def philox(seed: int, counter: int) -> int:
    """The first word of Philox4x32-10."""
    word = 0xFFFFFFFF
    c, k = [counter, 0, 0, 0], [seed & word, seed >> 32 & word]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & word, (a >> 32) ^ c[3] ^ k[1], a & word]
        k = [(k[0] + 0x9E3779B9) & word, (k[1] + 0xBB67AE85) & word]
    return c[0]


@triton.jit
def _random_kernel(out, seed, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.randint(seed, i), mask=i < n)


@pytest.mark.parametrize("seed", [1234, 1 << 40])
def test_philox(seed):
    out = torch.zeros(700, dtype=torch.int32)
    _random_kernel[(2,)](out, seed, 700, BLOCK=512)
    assert [value & 0xFFFFFFFF for value in out.tolist()] == [philox(seed, i) for i in range(700)]


# ---- reductions and scans


@triton.jit
def _better(a, i, b, j):
    first = (a > b) | ((a == b) & (i < j))
    return tl.where(first, a, b), tl.where(first, i, j)


@triton.jit
def _reduce_kernel(x, real, index, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    v = tl.load(x + i[:, None] * COLUMNS + j[None, :])
    tl.store(real + i, tl.sum(v, 1))
    tl.store(real + ROWS + i, tl.max(v, 1))
    tl.store(real + 2 * ROWS + j, tl.min(v, 0))
    tl.store(index + i, tl.argmin(v, 1))
    columns = tl.broadcast_to(j[None, :], (ROWS, COLUMNS))
    _, best = tl.reduce((v, columns), 1, _better)
    tl.store(index + ROWS + i, best)
    tl.store(index + 2 * ROWS, tl.xor_sum(tl.xor_sum(v.to(tl.int32), 0), 0))


@pytest.mark.parametrize("warps", [1, 4, 8])
@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (4, 256)])
def test_reductions(shape, warps):
    rows, columns = shape
    x = torch.randint(-99, 99, shape).float()
    real, index = torch.zeros(2 * rows + columns), torch.zeros(2 * rows + 1, dtype=torch.int32)
    _reduce_kernel[(1,)](x, real, index, rows, columns, num_warps=warps)
    assert torch.equal(real, torch.cat([x.sum(1), x.amax(1), x.amin(0)]))
    want = [
        *np.argmin(x.numpy(), 1),
        *np.argmax(x.numpy(), 1),
        np.bitwise_xor.reduce(x.int().numpy().ravel()),
    ]
    assert index.tolist() == want


@triton.jit
def _segment(a, start_a, b, start_b):
    return tl.where(start_b, b, a + b), start_a | start_b


@triton.jit
def _scan_kernel(x, out, counts, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(out + i, tl.cumsum(v, 0))
    tl.store(out + BLOCK + i, tl.cumsum(v, 0, reverse=True))
    within, _ = tl.associative_scan((v, (i % 16 == 0).to(tl.int32)), 0, _segment)
    tl.store(out + 2 * BLOCK + i, within)
    tl.store(out + 3 * BLOCK + i, tl.sort(v, descending=True))
    tl.store(counts + tl.arange(0, 16), tl.histogram(v.to(tl.int32), 16))


@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("n", [16, 256])
def test_scans_sort_and_histogram(n, warps):
    x, out, counts = torch.randint(0, 16, (n,)).float(), torch.zeros(4, n), torch.zeros(16, dtype=torch.int32)
    _scan_kernel[(1,)](x, out, counts, BLOCK=n, num_warps=warps)
    want = [
        x.cumsum(0),
        x.flip(0).cumsum(0).flip(0),
        x.view(-1, 16).cumsum(1).view(-1),
        x.sort(descending=True)[0],
    ]
    assert torch.equal(out, torch.stack(want))
    assert torch.equal(counts.long(), x.long().bincount(minlength=16))


@triton.jit
def _layout_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    even, odd = tl.split(tl.reshape(v, (BLOCK // 2, 2)))
    tl.store(out + i, tl.reshape(tl.join(odd, even), (BLOCK,)))
    tl.store(out + BLOCK + i, tl.reshape(tl.trans(tl.reshape(v, (BLOCK // 8, 8))), (BLOCK,)))
    tl.debug_barrier()
    tl.store(out + 2 * BLOCK + i, tl.gather(v, i * 7 % BLOCK, 0))
    tl.store(out + 3 * BLOCK + i, tl.flip(v, 0))


def test_layouts():
    x, out = torch.randn(256), torch.zeros(4, 256)
    _layout_kernel[(1,)](x, out, BLOCK=256)
    swapped, turned = x.view(-1, 2).flip(1).reshape(-1), x.view(32, 8).T.reshape(-1)
    assert torch.equal(out, torch.stack([swapped, turned, x[torch.arange(256) * 7 % 256], x.flip(0)]))


# ---- tensor cores


@triton.jit
def _dot_kernel(
    a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr
):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left, right = tl.load(a + m[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :])
    product = tl.dot(left, right, input_precision=PRECISION, out_dtype=TYPE)
    tl.store(out + m[:, None] * N + n[None, :], product)


@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "precision", "sums"),
    [
        (torch.bfloat16, "ieee", tl.float32),
        (torch.float16, "ieee", tl.float32),
        (torch.float16, "ieee", tl.float16),
        (torch.float32, "tf32", tl.float32),
        (torch.float32, "tf32x3", tl.float32),
        (torch.float32, "ieee", tl.float32),
        (torch.float64, "ieee", tl.float64),
        (torch.int8, "ieee", tl.int32),
        (torch.float8_e5m2, "ieee", tl.float32),
    ],
    ids=str,
)
def test_dots(dtype, precision, sums, warps):
    m, n, k = 16, 32, 32
    a, b = torch.randint(-4, 5, (m, k)).to(dtype), torch.randint(-4, 5, (k, n)).to(dtype)
    out = torch.zeros(
        m,
        n,
        dtype=getattr(
            torch, {"fp16": "float16", "fp32": "float32", "fp64": "float64"}.get(str(sums), "int32")
        ),
    )
    _dot_kernel[(1,)](a, b, out, m, n, k, precision, sums, num_warps=warps)
    assert torch.equal(out.double(), a.double() @ b.double())


def test_dots_of_eight_bit_floats_on_sm_89():
    a, b, out = (
        torch.randint(-4, 5, (32, 32)).to(torch.float8_e4m3fn),
        torch.eye(32).to(torch.float8_e4m3fn),
        torch.zeros(32, 32),
    )
    with ptx_emulator.active(89), ptx_emulator.count() as launches:
        _dot_kernel[(1,)](a, b, out, 32, 32, 32, "ieee", tl.float32)
    assert torch.equal(out, a.float()) and "e4m3.e4m3" in launches[0].ptx


@triton.jit
def _attention_kernel(q, k, v, out, n, scale, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):
    block, base = tl.program_id(0), tl.program_id(1) * n * D
    row, d, key = block * ROWS + tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, KEYS)
    query = tl.load(q + base + row[:, None] * D + d[None, :], mask=row[:, None] < n, other=0.0)
    top, mass = tl.full((ROWS,), -float("inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, (block + 1) * ROWS, KEYS):
        at = start + key
        keys = tl.load(k + base + at[None, :] * D + d[:, None], mask=at[None, :] < n, other=0.0)
        values = tl.load(v + base + at[:, None] * D + d[None, :], mask=at[:, None] < n, other=0.0)
        seen = (row[:, None] >= at[None, :]) & (at[None, :] < n)
        score = tl.where(seen, tl.dot(query, keys) * scale, -float("inf"))
        new = tl.maximum(top, tl.max(score, 1))
        weight, decay = tl.exp2(score - new[:, None]), tl.exp2(top - new)
        mass = mass * decay + tl.sum(weight, 1)
        total = tl.dot(weight.to(values.dtype), values, total * decay[:, None])
        top = new
    tl.store(
        out + base + row[:, None] * D + d[None, :],
        (total / mass[:, None]).to(out.dtype.element_ty),
        mask=row[:, None] < n,
    )


def attention(stages: int, n: int = 150) -> tuple[list[torch.Tensor], torch.Tensor, tuple]:
    """The tensors q, k, v, out; what PyTorch computes; and the numbers that the kernel takes after them."""
    q, k, v = torch.randn(3, 2, n, 64).bfloat16().unbind()
    want = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    numbers = (n, 64**-0.5 * math.log2(math.e))
    out = torch.zeros_like(q)
    grid = (triton.cdiv(n, 64), 2)
    _attention_kernel[grid](q, k, v, out, *numbers, D=64, ROWS=64, KEYS=32, num_stages=stages)
    return [q, k, v, out], want, numbers


def close(out: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(out.float(), want, atol=1.5e-2, rtol=2e-2)


@pytest.mark.parametrize("stages", [1, 3])
def test_attention(stages):
    tensors, want, _ = attention(stages)
    assert close(tensors[3], want)


# ---- control


@triton.jit
def _chase_kernel(following, start, steps, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(start + i, mask=i < n, other=0)
    total, count = tl.zeros((BLOCK,), tl.int64), 0
    while count < tl.load(steps + tl.program_id(0)):
        at = tl.load(following + at, mask=i < n, other=0)
        total += at.to(tl.int64)
        count += 1
    tl.store(out + i, total, mask=i < n)


def test_loops_that_the_data_ends():
    following, start = (
        torch.randperm(500, dtype=torch.int32),
        torch.randint(0, 500, (300,), dtype=torch.int32),
    )
    steps, out = torch.tensor([3, 9, 0]), torch.zeros(300, dtype=torch.int64)
    _chase_kernel[(3,)](following, start, steps, out, 300, BLOCK=128)
    want = torch.zeros(300, dtype=torch.int64)
    for program, count in enumerate(steps.tolist()):
        part, at = (
            slice(128 * program, 128 * (program + 1)),
            start[128 * program : 128 * (program + 1)].long(),
        )
        for _ in range(count):
            at = following[at].long()
            want[part] += at
    assert torch.equal(out, want)


@triton.jit
def _ways_kernel(x, out, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i)
    if program % 2 == 0:
        for _ in range(program):
            v += tl.sum(v, 0)
    else:
        v = tl.cumsum(v, 0)
    if program == 3:
        return
    tl.store(out + i, v)


def test_programs_that_go_different_ways():
    x, out, want = torch.randint(0, 3, (8, 128)).float(), torch.zeros(8, 128), torch.zeros(8, 128)
    _ways_kernel[(8,)](x, out, BLOCK=128)
    for program in (0, 1, 2, 4, 5, 6, 7):
        v = x[program].clone()
        for _ in range(program if program % 2 == 0 else 0):
            v += v.sum()
        want[program] = v if program % 2 == 0 else v.cumsum(0)
    assert torch.equal(out, want)


@triton.jit
def _atomic_kernel(x, index, sums, tops, counter, order, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(index + i, mask=i < n, other=0)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_add(sums + at, v, mask=i < n, sem="relaxed")
    tl.atomic_max(tops + at, v, mask=i < n)
    tl.atomic_min(tops + 16 + at, v, mask=i < n)
    tl.store(order + tl.program_id(0), tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu"))
    tl.atomic_cas(counter + 1, 0, 5)
    tl.atomic_xchg(counter + 2, tl.program_id(0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32], ids=str)
def test_atomics(dtype):
    x, index = torch.randint(-50, 50, (500,)).to(dtype), torch.randint(0, 16, (500,), dtype=torch.int32)
    sums, tops = torch.zeros(16, dtype=dtype), torch.zeros(32, dtype=dtype)
    counter, order = torch.zeros(3, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    _atomic_kernel[(4,)](x, index, sums, tops, counter, order, 500, BLOCK=128)
    zeros = torch.zeros(16, dtype=dtype)
    assert torch.equal(sums, zeros.index_add(0, index, x))
    assert torch.equal(tops[:16], zeros.scatter_reduce(0, index.long(), x, "amax"))
    assert torch.equal(tops[16:], zeros.scatter_reduce(0, index.long(), x, "amin"))
    assert sorted(order.tolist()) == [0, 1, 2, 3] and counter[:2].tolist() == [4, 5]


def test_the_result_does_not_depend_on_which_programs_run_together():
    results = []
    for together in (128, 1024, 16384):
        with ptx_emulator.active(80, batch_threads=together):
            torch.manual_seed(1)
            results.append(attention(3)[0][3])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- memory


@triton.jit
def _table_kernel(addresses, source, out, n, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = tl.load(addresses + program).to(tl.pointer_type(tl.bfloat16))
    i = tl.arange(0, BLOCK)
    moved = tl.load(row + tl.load(source + program) * n + i, mask=i < n)
    tl.store(row + i, moved, mask=i < n)
    tl.store(out + program * n + i, moved.to(tl.float32), mask=i < n)


def table() -> tuple[list[torch.Tensor], tuple]:
    caches = [torch.randn(4, 100).bfloat16() for _ in range(3)]
    addresses = torch.tensor([cache.data_ptr() for cache in caches])
    return caches, (addresses, torch.tensor([1, 2, 3]), torch.zeros(3, 100), 100)


def test_mapped_tensors_are_reached_through_a_table_of_addresses():
    caches, arguments = table()
    want = torch.stack([cache[j + 1].clone() for j, cache in enumerate(caches)])
    with ptx_emulator.mapped(*caches):
        _table_kernel[(3,)](*arguments, BLOCK=128)
    assert torch.equal(torch.stack([cache[0] for cache in caches]), want)
    assert torch.equal(arguments[2], want.float())
    with pytest.raises(PTXError, match="out-of-bounds"):
        _table_kernel[(3,)](*arguments, BLOCK=128)


def test_live_tensors_are_found_by_address():
    caches, arguments = table()
    want = torch.stack([cache[j + 1].clone() for j, cache in enumerate(caches)])
    with ptx_emulator.active(80, reach="live"):
        _table_kernel[(3,)](*arguments, BLOCK=128)
        assert torch.equal(torch.stack([cache[0] for cache in caches]), want)
        arguments[0][1] = 1 << 20
        with pytest.raises(PTXError, match="out-of-bounds"):
            _table_kernel[(3,)](*arguments, BLOCK=128)


@triton.jit
def _row_kernel(x, out, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * stride
    tl.store(out + tl.program_id(0) * BLOCK + i, tl.load(x + row + i))


@pytest.mark.usefixtures("untouched_memory")
def test_offsets_beyond_two_to_the_31():
    """Pages of memory that nobody touches take none."""
    stride = (1 << 30) + (1 << 29) - 64
    x, out = torch.empty(3 << 30, dtype=torch.int8), torch.zeros(2, 64, dtype=torch.int8)
    x[stride : stride + 64], x[:64] = 5, 3
    _row_kernel[(2,)](x, out, stride, BLOCK=64)
    assert out[0].eq(3).all() and out[1].eq(5).all()


@triton.jit
def _descriptor_kernel(x, out, M, N, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [M, N], [N, 1], [BLOCK, BLOCK])
    target = tl.make_tensor_descriptor(out, [M, N], [N, 1], [BLOCK, BLOCK])
    target.store([tl.program_id(0) * BLOCK, 0], source.load([tl.program_id(0) * BLOCK, 0]) * 2)


def test_tensor_descriptors():
    x, out = torch.randn(40, 16), torch.zeros(40, 16)
    _descriptor_kernel[(3,)](x, out, 40, 16, BLOCK=16)
    assert torch.equal(out, 2 * x)


def test_a_launch_may_not_leave_its_tensors():
    x, y, out = torch.randn(300), torch.randn(300), torch.zeros(300)
    with pytest.raises(PTXError, match=r"argument out|out \["):
        _add_kernel[(1,)](x, y, out[:200], 300, None, BLOCK=512)
    with ptx_emulator.active(80, bounds="storage"):
        _add_kernel[(1,)](x, y, out[:200], 300, None, BLOCK=512)
    assert torch.equal(out, x + y)


@triton.jit
def _promise_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(tl.max_contiguous(tl.multiple_of(x + i, [16]), [BLOCK])))


def test_a_broken_promise_of_alignment():
    x, out = torch.randn(300), torch.zeros(256)
    _promise_kernel[(1,)](x, out, BLOCK=256)
    with pytest.raises(PTXError, match="misaligned"):
        _promise_kernel[(1,)](x[1:], out, BLOCK=256)


def test_arguments_without_memory_here():
    with pytest.raises(PTXError, match="argument x is on meta"):
        _cast_kernel[(1,)](torch.zeros(256, device="meta"), torch.zeros(256), BLOCK=256)


# ---- counts


def test_counts_of_an_addition():
    x, y, out = torch.randn(5000), torch.randn(5000), torch.zeros(5000)
    with ptx_emulator.count() as launches:
        _add_kernel[(5,)](x, y, out, 5000, None, BLOCK=1024, num_warps=4)
    (launch,) = launches
    assert (launch.name, launch.grid, launch.num_warps, launch.shared) == ("_add_kernel", (5, 1, 1), 4, 0)
    assert launch.n["global_ld_bytes"] == 2 * 4 * 5000 and launch.n["global_st_bytes"] == 4 * 5000
    assert launch.n["warps"] == 5 * 4 and launch.n["warp_insts"] == launch.ops.total()
    assert launches.bytes() == 3 * 4 * 5000
    touched = sum(-(-(t.data_ptr() % 32 + 20000) // 32) for t in (x, y, out))
    assert launches.sectors() >= touched and launches.moved() == 32 * touched
    static = sum(
        line.strip().startswith("st.global") or " st.global" in line for line in launch.ptx.splitlines()
    )
    assert sum(n for name, n in launch.ops.items() if name.startswith("st.global")) == static * 20


@triton.jit
def _gap_kernel(x, out, GAP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i * GAP))


@pytest.mark.parametrize(("gap", "per_warp"), [(1, 4), (2, 8), (8, 32), (64, 32)])
def test_sectors_are_counted_once_for_each_warp_that_asks(gap, per_warp):
    memory = torch.randn(512 * gap + 8)
    x = memory[(-memory.data_ptr() // 4) % 8 :][: 512 * gap]  # starts a sector
    out = torch.zeros(512)
    with ptx_emulator.count() as launches:
        _gap_kernel[(4,)](x, out, GAP=gap, BLOCK=128)
    total = launches.total()
    assert torch.equal(out, x[::gap])
    assert total["global_ld_sectors"] == 16 * per_warp
    assert total["unique_ld_bytes"] == 32 * min(512 * gap // 8, 512)


def test_a_value_that_all_threads_load_counts_for_each():
    with ptx_emulator.count() as launches:
        _add_kernel[(1,)](
            torch.zeros(128), torch.zeros(128), torch.zeros(128), 128, torch.zeros(1), BLOCK=128
        )
    assert launches.total()["global_ld_bytes"] == 4 * 128 * 3


def test_shared_bytes_atomics_and_tensor_cores_are_counted():
    with ptx_emulator.count() as launches:
        attention(3)
    total = launches.total()
    assert total["mma"] and total["shared_ld_bytes"] and total["shared_st_bytes"]
    assert total["mma"] == sum(n for name, n in launches[0].ops.items() if name.startswith("mma"))
    with ptx_emulator.count() as launches:
        test_atomics(torch.int32)
    assert launches.total()["atomics"] == 3 * 500 + 3 * 4


def test_counting_changes_no_result_and_nests():
    x, out = torch.randn(256), torch.zeros(256)
    with ptx_emulator.count() as outer:
        _cast_kernel[(1,)](x, out, BLOCK=256)
        with ptx_emulator.count() as inner:
            _cast_kernel[(1,)](x, out, BLOCK=256)
    _cast_kernel[(1,)](x, out, BLOCK=256)
    assert (len(outer), len(inner)) == (2, 1) and outer[1] is inner[0] and torch.equal(x, out)


def test_compile_only_runs_nothing():
    out = torch.zeros(100)
    with ptx_emulator.active(90, compile_only=True), ptx_emulator.count() as launches:
        _add_kernel[(1,)](torch.ones(100), torch.ones(100), out, 100, None, BLOCK=128)
    assert not out.any() and ".target sm_90" in launches[0].ptx


def test_resources():
    with ptx_emulator.active(80), ptx_emulator.count() as launches:
        attention(1)
    found = ptx_emulator.resources(launches[0].ptx)
    assert 32 < found["registers"] <= 255 and found["spill_stores"] == found["spill_loads"] == 0


def test_options_are_checked_and_restored():
    with pytest.raises(TypeError, match="racing"):
        ptx_emulator.activate(80, racing=True)
    with pytest.raises(ValueError, match="bounds"):
        ptx_emulator.activate(80, bounds="page")
    before = ptx_emulator.driver.options
    with ptx_emulator.active(90, races=False):
        assert triton.runtime.driver.active.get_current_target().arch == 90
    assert ptx_emulator.driver.options is before
    assert triton.runtime.driver.active.get_current_target().arch == 80


# ---- broken code is caught


def drop(pattern: str):
    """A mutation that makes an instruction do nothing."""
    return lambda text: text.replace(pattern, "// " + pattern)


def swap_first_mma(text: str) -> str:
    """The registers of B of the first tensor core instruction change places."""
    start = text.index("mma.sync")
    at = text.index("}, {", text.index("}, {", start) + 1) + 4
    end = text.index("}", at)
    first, second = text[at:end].split(",")
    return f"{text[:at]}{second}, {first}{text[end:]}"


ATTENTION_MUTANTS = {
    "a dropped wait": drop("cp.async.wait_group"),
    "no barriers": drop("bar.sync"),
    "a copy to another place": lambda text: re.sub(
        r"(cp\.async\.cg.* \[ %r\d+ \+ )0", r"\g<1>16", text, count=1
    ),
    "swapped registers of B": swap_first_mma,
    "a sum over fewer lanes": lambda text: text.replace(", 2, 31, -1", ", 0, 31, -1"),
    "a weaker mask": lambda text: text.replace("setp.lt.s32", "setp.le.s32"),
    "an inverted comparison": lambda text: text.replace("setp.gt.s32", "setp.le.s32"),
    "a maximum that is a minimum": lambda text: text.replace("max.f32", "min.f32"),
    "a difference that is a sum": lambda text: text.replace("sub.f32", "add.f32"),
    "transposed fragments": lambda text: text.replace(".x4.trans", ".x4"),
    "a loop that ends early": lambda text: text.replace("add.s32", "sub.s32", 1),
}


@pytest.fixture(scope="module")
def attended():
    with ptx_emulator.active(80, races=True, reach="mapped", bounds="view"), ptx_emulator.count() as launches:
        tensors, want, numbers = attention(3)
    return launches[0], tensors, want, numbers


def rerun(launch, ptx: str, tensors: list[torch.Tensor], *numbers: object) -> None:
    tensors[-1].zero_()
    ptx_emulator.run(ptx, launch.grid, *tensors, *numbers, shared=launch.shared)


def test_the_unbroken_text_runs(attended):
    launch, tensors, want, numbers = attended
    rerun(launch, launch.ptx, tensors, *numbers)
    assert close(tensors[3], want)


@pytest.mark.parametrize("mutant", ATTENTION_MUTANTS)
def test_a_mutant_is_caught(attended, mutant):
    launch, tensors, want, numbers = attended
    text = ATTENTION_MUTANTS[mutant](launch.ptx)
    assert text != launch.ptx, "the mutation changed nothing"
    try:
        rerun(launch, text, tensors, *numbers)
    except PTXError:
        return
    assert not close(tensors[3], want)


@triton.jit
def _reverse_kernel(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.gather(tl.load(x + i), BLOCK - 1 - i, 0))


def test_a_missing_barrier_is_seen_although_lanes_in_step_hide_it():
    x, out = torch.randn(256), torch.zeros(256)
    with ptx_emulator.count() as launches:
        _reverse_kernel[(1,)](x, out, BLOCK=256)
    (launch,) = launches
    text = drop("bar.sync")(launch.ptx)
    assert torch.equal(out, x.flip(0)) and text != launch.ptx
    with pytest.raises(PTXError, match="race"):
        rerun(launch, text, [x, out])
    with ptx_emulator.active(80, races=False):
        rerun(launch, text, [x, out])
    assert torch.equal(out, x.flip(0))


# ---- a second opinion


@pytest.mark.skipif(INTERPRETED, reason="this is the process of the second opinion")
def test_the_interpreter_of_triton_agrees():
    """The same tests, in a process where Triton interprets the kernels and compiles nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    chosen = "test_softmax or test_philox or test_loops or test_integers or test_addition"
    done = subprocess.run(
        [*command, "-k", chosen], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr  # it is 5 if no test was chosen
