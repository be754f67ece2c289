# SPDX-License-Identifier: Apache-2.0
"""wgmma: every form against products by PyTorch, and what has to come before and after it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from attention_cases import make
from ptx import kernel

import ptx_emulator
from ptx_emulator import PTXError, driver

pytestmark = pytest.mark.slow
DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "s8": torch.int8,
}
UNFENCED = [int(n) for n in re.findall(r"\d+", triton.__version__)[:3]] < [3, 7, 1]  # after copies in a loop
A, B = 0, 32768  # where the matrices lie in shared memory
THREADS = 128


# ---- one warpgroup, written by hand


def by_depth(x: torch.Tensor, width: int) -> tuple[np.ndarray, int, int, int]:
    """Rows of x in rows of `width` bytes, eight of them a pattern in which chunks of 16 bytes change places;
    width 16: blocks of eight chunks. The bytes, both strides, and how far the next 32 bytes of depth are."""
    chunks = x.contiguous().view(torch.uint8).numpy().reshape(len(x), -1, 16)
    rows, count, _ = chunks.shape
    image = np.zeros((rows // 8, count, 8, 16) if width == 16 else (rows // 8, 8, count, 16), np.uint8)
    for row in range(rows):
        for chunk in range(count):
            if width == 16:
                image[row // 8, chunk, row % 8] = chunks[row, chunk]
            else:
                image[row // 8, row % 8, chunk ^ row % 8 * width // 128] = chunks[row, chunk]
    return image, 128, image[0].nbytes, 256 if width == 16 else 32


def by_rows(x: torch.Tensor, width: int) -> tuple[np.ndarray, int, int, int]:
    """The same of x transposed, of 16-bit elements: eight places of the depth are a pattern."""
    chunks = x.T.contiguous().view(torch.uint8).numpy().reshape(x.shape[1], -1, 16)
    depth, count, _ = chunks.shape
    across = width // 16
    image = np.zeros((count // across, depth // 8, 8, across, 16), np.uint8)
    for k in range(depth):
        for chunk in range(count):
            place = chunk % across ^ k % 8 * width // 128
            image[chunk // across, k // 8, k % 8, place] = chunks[k, chunk]
    next_rows, next_depth = image[0].nbytes, image[0, 0].nbytes
    strides = (next_depth, next_rows) if width == 16 else (next_rows, next_depth)
    return image, *strides, 2 * next_depth


def descriptor(start: int, leading: int, stride: int, width: int) -> int:
    swizzle = {16: 0, 128: 1, 64: 2, 32: 3}[width]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62


def a_registers(a: torch.Tensor) -> torch.Tensor:
    """The words of A's fragments, [threads, registers], as PTX draws them."""
    each = 4 // a.element_size()
    words = torch.zeros(THREADS, a.shape[1] // each // 2, each, dtype=a.dtype)
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for register in range(words.shape[1]):
            row = 16 * warp + lane // 4 + 8 * (register % 2)
            column = register // 2 * 4 * each + lane % 4 * each
            words[thread, register] = a[row, column : column + each]
    return words.view(torch.int32).reshape(THREADS, -1)


def body(name: str, columns: int, steps: list[str], a_words: int, shared: int) -> str:
    """Copies `shared` bytes of %rd1 to shared memory, multiplies, and stores the registers to %rd0."""
    sums = columns // 2
    d = [f"%d{j}" for j in range(sums)]
    lines = [f".reg .b32 %d<{sums}>; .reg .b32 %a<{max(a_words, 1)}>;"]
    lines += ["shl.b32 %r1, %r0, 4; mad.wide.u32 %rd9, %r0, 16, %rd1;"]
    for start in range(0, shared, 16 * THREADS):
        lines.append(f"ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%rd9+{start}];")
        lines.append(f"st.shared.v4.b32 [%r1+{start}], {{%r2, %r3, %r4, %r5}};")
    lines.append(f"mad.wide.u32 %rd9, %r0, {4 * a_words}, %rd2;" if a_words else "")
    lines += [f"ld.global.b32 %a{j}, [%rd9+{4 * j}];" for j in range(a_words)]
    lines += [f"mov.b32 %d{j}, 0f3F800000;" for j in range(sums)]  # which the first product replaces
    lines += ["fence.proxy.async.shared::cta;", "bar.sync 0;", "wgmma.fence.sync.aligned;"]
    for step, operands in enumerate(steps):
        signs = "" if ".s8" in name else ", 1, 1"
        first, *turned = operands.split("|")
        lines.append(f"{name} {{{', '.join(d)}}}, {first}, {min(step, 1)}{signs}{''.join(turned)};")
    lines += ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]
    lines.append(f"mad.wide.u32 %rd9, %r0, {4 * sums}, %rd0;")
    lines += [f"st.global.b32 [%rd9+{4 * j}], {name};" for j, name in enumerate(d)]
    return "\n".join(lines)


def multiply(form, columns, width, a_rows=False, b_rows=False, in_registers=False, change=lambda text: text):
    """The product of random matrices by wgmma, and by PyTorch. a_rows, b_rows: matrices lie by rows."""
    dtype = DTYPES[form]
    depth, each = max(width, 32) // dtype.itemsize, 32 // dtype.itemsize
    steps = depth // each
    a, b = torch.randint(-4, 5, (64, depth)).to(dtype), torch.randint(-4, 5, (columns, depth)).to(dtype)
    image = np.zeros(B + 65536, np.uint8)
    places = []
    for x, start, rows in ((a, A, a_rows), (b, B, b_rows)):
        data, leading, stride, onward = (by_rows if rows else by_depth)(x, width)
        image[start : start + data.nbytes] = data.reshape(-1)
        places.append([descriptor(start + step * onward, leading, stride, width) for step in range(steps)])
    used = B + -(-b.nbytes // 2048) * 2048
    registers = torch.stack([a_registers(a[:, k : k + each]) for k in range(0, depth, each)], 1)
    a_words = registers[0].numel() if in_registers else 0
    turned = ""
    if dtype.itemsize == 2:
        turned = f", {b_rows:d}" if in_registers else f", {a_rows:d}, {b_rows:d}"
    operands = []
    for step in range(steps):
        names = [f"%a{step * registers.shape[2] + j}" for j in range(registers.shape[2])]
        left = f"{{{', '.join(names)}}}" if in_registers else f"%rd{10 + step}"
        operands.append(f"{left}, %rd{20 + step}|{turned}")
    moves = "".join(
        f"mov.b64 %rd{10 + step}, {first}; mov.b64 %rd{20 + step}, {second};\n"
        for step, (first, second) in enumerate(zip(*places, strict=True))
    )
    sums = "s32" if form == "s8" else "f32"
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k{each}.{sums}.{form}.{form}"
    out = torch.zeros(THREADS, columns // 2, dtype=torch.int32 if sums == "s32" else torch.float32)
    text = change(kernel(moves + body(name, columns, operands, a_words, used), 3, THREADS))
    with ptx_emulator.active(90, races=True):
        ptx_emulator.run(
            text, (1, 1, 1), out, torch.from_numpy(image), registers.reshape(THREADS, -1), shared=B + 65536
        )
    got = torch.zeros(64, columns)
    for thread in range(THREADS):
        row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
        for half in (0, 8):
            for pair in (0, 1):
                got[row + half, column + pair :: 8] = out[thread, half // 4 + pair :: 4].float()
    return got, a.float() @ b.float().T


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("form", DTYPES)
def test_products_of_every_type_and_swizzle(form, width):
    for options in (dict(columns=24), dict(columns=16, in_registers=True)):
        got, want = multiply(form, width=width, **options)
        assert torch.equal(got, want)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_matrices_that_lie_by_rows(width):
    for a_rows, b_rows in ((True, False), (False, True), (True, True)):
        got, want = multiply("bf16", 64, width, a_rows, b_rows)
        assert torch.equal(got, want)
    got, want = multiply("f16", 128, width, b_rows=True, in_registers=True)
    assert torch.equal(got, want)


@pytest.mark.parametrize("columns", [8, 40, 96, 128, 256])
def test_products_of_every_width(columns):
    got, want = multiply("bf16", columns, 128)
    assert torch.equal(got, want)


def test_signs_of_the_factors():
    for signs, sign in (("-1, 1", -1), ("1, -1", -1), ("-1, -1", 1)):
        mutation = change(r"1, 1, 0, 0;", f"{signs}, 0, 0;")
        got, want = multiply("bf16", 16, 32, change=mutation)
        assert torch.equal(got, sign * want)


def change(pattern: str, replacement: str, count: int = 0):
    """A mutation of a text, which must change it."""

    def changed(text: str) -> str:
        mutant, changes = re.subn(pattern, replacement, text, count=count)
        assert changes, f"{pattern} is not in the text"
        return mutant

    return changed


@pytest.mark.parametrize(
    ("pattern", "replacement", "error"),
    [
        (r"fence\.proxy.*?;", "", "fence.proxy.async"),
        (r"(fence\.proxy.*?;)\s*bar.sync 0;", r"\1", "after the last barrier"),
        (r"(fence\.proxy.*?;)(\s*)(bar.sync 0;)", r"\3\2@%p0 \1", "fence.proxy.async"),  # by no thread
        (r"wgmma\.fence.*?;", "", "no wgmma.fence"),
        (r"wgmma\.commit_group.*?;", "", "wgmma.wait_group has to come first"),
        (r"wgmma\.wait_group.*?;", "", "wgmma.wait_group has to come first"),
        (r"(wgmma\.wait_group.*? )0;", r"\g<1>1;", "wgmma.wait_group has to come first"),
        (r"(wgmma\.commit_group.*?;)", r"\1 st.shared.b32 [%r1], %r2;", "may still read"),
        (r"(wgmma\.wait_group.*?;)", r"\1 st.shared.b32 [%r1], %r2;", "may still read"),  # by other warps
        (r"(wgmma\.fence.*?;)", r"\1 mov.b32 %d0, 0;", "no wgmma.fence"),
        (r"wgmma\.fence.*?;", r"setp.gt.u32 %p1, %r0, 99; @%p1 bra DONE; \g<0>", "inactive lanes"),
        (r"(wgmma\.fence.*?;)", r"\1 cvt.u64.u32 %rd9, %r0; add.u64 %rd10, %rd10, %rd9;", "different desc"),
        (r"mov.b64 (%rd1\d), (\d+);", r"or.b64 \1, \2, 562949953421312;", "base offset"),
        (r"mov.b64 (%rd1\d), (\d+);", r"or.b64 \1, \2, 16383;", "out-of-bounds"),
    ],
)
def test_what_is_left_out_is_noticed(pattern, replacement, error):
    end = change(r"ret;", "DONE: ret;")
    with pytest.raises(PTXError, match=error):
        multiply("bf16", 64, 128, change=lambda text: change(pattern, replacement)(end(text)))


def test_what_was_read_may_be_written_after_a_wait_and_a_barrier():
    mutation = change(r"wgmma\.wait_group.*?;", r"\g<0> bar.sync 0; st.shared.b32 [%r1], %r2;")
    got, want = multiply("bf16", 64, 128, change=mutation)
    assert torch.equal(got, want)


@pytest.mark.parametrize("use", [
    "mov.b32 %r9, %d0;", "max.f32 %r9, %r9, %d0;", "selp.b32 %r9, %d0, %r9, %p0;",
    "setp.eq.f32 %p1, %d0, %r9;", "cvt.rn.bf16x2.f32 %r9, %d0, %d1;", "mov.b32 {%rs1, %rs2}, %d0;",
    "shfl.sync.idx.b32 %r9, %d0, 0, 31, -1;", "@%p0 add.f32 %d0, %d0, %d0;",
    "st.shared.b32 [%r1+65536], %d0;",
])  # fmt: skip
def test_a_product_that_is_used_before_the_wait_is_noticed(use):
    with pytest.raises(PTXError, match="wgmma.wait_group has to come first"):
        multiply("bf16", 64, 128, change=change(r"wgmma\.wait_group.*?;", rf"{use} \g<0>"))


def test_readers_may_fence_after_the_barrier():
    got, want = multiply("bf16", 64, 128, change=change(r"(fence\.proxy.*?;)(\s*bar.sync 0;)", r"\2 \1"))
    assert torch.equal(got, want)


def exchange_strides(word: int) -> int:
    """A descriptor whose leading and stride offsets have changed places."""
    both = (word >> 16 ^ word >> 32) & 0x3FFF
    return word ^ both << 16 ^ both << 32


@pytest.mark.parametrize("columns, width, options", [
    (64, 16, dict()), (64, 128, dict()), (128, 128, dict(b_rows=True)),
    (64, 32, dict(a_rows=True, b_rows=True)),
])  # fmt: skip
def test_exchanged_strides_and_other_swizzles_are_noticed(columns, width, options):
    for mutate in (exchange_strides, lambda word: word ^ 1 << 62):
        mutation = change(
            r"(?<=mov.b64 %rd2\d, )\d+", lambda match, mutate=mutate: str(mutate(int(match[0])))
        )
        got, want = multiply("bf16", columns, width, **options, change=mutation)
        assert not torch.equal(got, want)


# ---- Triton's code


@triton.jit
def _dot_kernel(
    a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr,
    A_TURNED: tl.constexpr, B_TURNED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, STEP)
    total = tl.zeros((M, N), TYPE)
    for start in tl.range(0, K, STEP, num_stages=STAGES):
        at = start + k
        left = tl.load(a + (m[:, None] + at[None, :] * M if A_TURNED else m[:, None] * K + at[None, :]))
        right = tl.load(b + (at[:, None] + n[None, :] * K if B_TURNED else at[:, None] * N + n[None, :]))
        total = tl.dot(left, right, total, input_precision="tf32", out_dtype=TYPE)
    tl.store(out + m[:, None] * N + n[None, :], total)


def dot(dtype, columns=64, step=64, rows=64, stages=1, depth=None, turned=(False, False), sums=tl.float32):
    """The product of random matrices by Triton's kernel, by PyTorch, and the launch."""
    depth = depth or step
    a, b = torch.randint(-4, 5, (rows, depth)).to(dtype), torch.randint(-4, 5, (depth, columns)).to(dtype)
    out = torch.zeros(rows, columns, dtype={tl.int32: torch.int32, tl.float16: torch.float16}.get(sums))
    given = [x.T.contiguous() if flag else x for x, flag in zip((a, b), turned, strict=True)]
    with ptx_emulator.active(90, races=True, bounds="view"), ptx_emulator.count() as launches:
        _dot_kernel[(1,)](
            *given, out, rows, columns, depth, step, sums, *turned, stages, num_warps=rows // 16
        )
    (launch,) = launches
    assert "wgmma.mma_async" in launch.ptx
    return out.double(), a.double() @ b.double(), launch


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.bfloat16, dict()),
        (torch.bfloat16, dict(turned=(True, True))),
        (torch.float16, dict(turned=(True, False), columns=16, step=32)),
        (torch.float16, dict(sums=tl.float16, columns=32, step=16)),
        (torch.bfloat16, dict(rows=128, columns=128, turned=(False, True))),
        (torch.bfloat16, dict(columns=256, step=16)),
        (torch.float32, dict(step=32)),
        (torch.float8_e5m2, dict()),
        (torch.float8_e4m3fn, dict(step=128, columns=32)),
        (torch.int8, dict(sums=tl.int32)),
    ],
    ids=str,
)
def test_dots(dtype, options):
    got, want, _ = dot(dtype, **options)
    assert torch.equal(got, want)


PIPELINED = [dict(stages=3, depth=512), dict(stages=4, depth=256, rows=128, step=32)]


@pytest.mark.parametrize("options", PIPELINED, ids=str)
@pytest.mark.skipif(UNFENCED, reason="Triton leaves out the fence")
def test_dots_of_tiles_that_are_copied_ahead(options):
    got, want, _ = dot(torch.bfloat16, **options)
    assert torch.equal(got, want)


@pytest.mark.parametrize("options", PIPELINED, ids=str)
@pytest.mark.skipif(not UNFENCED, reason="Triton 3.7.1 and later fence")
def test_the_fence_that_triton_leaves_out_is_missed(options):
    """triton-lang/triton#9610: wgmma may read what was in shared memory before the copy."""
    with pytest.raises(PTXError, match="no fence.proxy.async"):
        dot(torch.bfloat16, **options)


def load_changed(monkeypatch, mutation) -> None:
    """Kernels that multiply by wgmma are changed before they run."""
    load = driver.program.load
    changed = lambda ptx: load(mutation(ptx) if "wgmma" in ptx else ptx)  # noqa: E731
    monkeypatch.setattr(driver.program, "load", changed)


MUTANTS = {
    "no fence before products": (change(r"fence\.proxy\.async.*?;", ""), "fence.proxy.async"),
    "no wait for products": (change(r"wgmma\.wait_group.*?;", ""), "wgmma.wait_group"),
    "a wait for all products but the last": (
        change(r"(wgmma\.wait_group\S*\s+)0;", r"\g<1>1;"),
        "wgmma.wait_group",
    ),
    "no wait for copies": (change(r"cp\.async\.wait_group\s+\d+;", ""), "before cp.async has filled it"),
    "no barriers": (change(r"bar\.sync.*?;", ""), "race|last barrier"),
    "no barrier after a wait": (
        change(r"(cp\.async\.wait_group\s+\d+;)\s*bar\.sync.*?;", r"\1"),
        "race|last barrier",
    ),
    "no fence of registers": (change(r"wgmma\.fence.*?;", ""), "no wgmma.fence"),
    "exchanged strides": (  # in the constant part of every descriptor, to which Triton adds an address
        change(r"(?<=, )4611\d{15}(?=;)", lambda match: str(exchange_strides(int(match[0])))),
        None,
    ),
}


def attention(rows: int):
    """Attention of 64 or 128 packed rows, two tiles of the prefix and one of the tree."""
    tree = [-1, *((i - 1) // 2 for i in range(1, rows // 4))]
    problem = make(
        prefixes=[100], trees=[tree], heads=1, group=4, head=64, page_size=16, dtype=torch.bfloat16
    )
    with ptx_emulator.active(90, races=True):
        return problem.run("triton", max_prefix_len=100)


@pytest.fixture(scope="module", params=[64, 128])
def attended(request):
    return request.param, attention(request.param)


@pytest.mark.skipif(UNFENCED, reason="such tiles are not used there")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_of_attention_is_caught(attended, mutant, monkeypatch):
    rows, (want, want_lse) = attended
    mutation, error = MUTANTS[mutant]
    load_changed(monkeypatch, mutation)
    if error:
        with pytest.raises(PTXError, match=error):
            attention(rows)
    else:
        out, lse = attention(rows)
        assert not torch.allclose(lse, want_lse, atol=1e-3) and not torch.allclose(out, want, atol=1e-3)


@pytest.mark.skipif(UNFENCED, reason="Triton leaves out the fence")
def test_a_buffer_that_is_filled_again_too_early_is_noticed(monkeypatch):
    """Copies run three tiles ahead, and products one tile behind."""
    options = dict(stages=4, depth=512)
    got, want, launch = dot(torch.bfloat16, **options)
    assert torch.equal(got, want)
    assert re.search(r"wgmma\.wait_group\S*\s+1;", launch.ptx)
    load_changed(monkeypatch, change(r"(wgmma\.wait_group\S*\s+)1;", r"\g<1>3;"))
    with pytest.raises(PTXError, match="may still read"):
        dot(torch.bfloat16, **options)
