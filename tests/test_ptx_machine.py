# SPDX-License-Identifier: Apache-2.0
"""The emulator on PTX written by hand: memory, exchange between lanes, barriers, divergence, tensor cores;
and every check, shown to fire."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ptx import kernel, run

import ptx_emulator
from ptx_emulator import PTXError

LANE = torch.arange(32, dtype=torch.int32)
OWN = "mad.wide.u32 %rd20, %r0, 4, %rd0;"  # the thread's element of p0
STORE = f"{OWN}\nst.global.b32 [%rd20], %r1;"


def int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def lanes(body: str, *inputs: torch.Tensor, threads: int = 32) -> torch.Tensor:
    """What each thread leaves in %r1; inputs are p1, p2, ..."""
    out = int32(threads)
    run(f"{body}\n{STORE}", out, *inputs, threads=threads)
    return out


# ---- loads and stores


@pytest.mark.parametrize(
    ("form", "register", "dtype"),
    [
        ("u8", "%r1", torch.uint8),
        ("s8", "%r1", torch.int8),
        ("s16", "%r1", torch.int16),
        ("b32", "%r1", torch.int32),
    ],
)
def test_a_load_extends_as_its_type_says(form, register, dtype):
    values = torch.arange(-16, 16).to(dtype)
    size = values.element_size()
    got = lanes(f"mad.wide.u32 %rd5, %r0, {size}, %rd1;\nld.global.{form} {register}, [%rd5];", values)
    assert torch.equal(got, values.int())


def test_vectors_of_loads_and_stores():
    x, out = torch.arange(128, dtype=torch.int32), int32(128)
    run(
        """
        mad.wide.u32 %rd5, %r0, 16, %rd1;
        mad.wide.u32 %rd6, %r0, 16, %rd0;
        ld.global.L1::evict_last.v4.b32 {%r1, %r2, %r3, %r4}, [%rd5];
        st.global.v2.b32 [%rd6+8], {%r2, %r1};
        st.global.v2.b32 [%rd6], {%r4, %r3};
        """,
        out,
        x,
    )
    assert torch.equal(out.view(32, 4), x.view(32, 4).flip(1))


def test_the_last_lane_wins_a_store_to_one_address():
    out = int32(1)
    run("st.global.b32 [%rd0], %r0;", out)
    assert out.item() == 31


def test_bytes_are_stored_from_wider_registers():
    out = torch.zeros(32, dtype=torch.uint8)
    run(
        "cvt.u64.u32 %rd5, %r0; add.s64 %rd5, %rd5, %rd0; add.u32 %r1, %r0, 0x300; st.global.b8 [%rd5], %r1;",
        out,
    )
    assert torch.equal(out, LANE.to(torch.uint8))


def test_shared_memory_carries_values_over_a_barrier():
    body = """
        shl.b32 %r2, %r0, 2;
        mov.b32 %r3, memory;
        add.s32 %r3, %r3, %r2;
        st.shared.b32 [%r3], %r0;
        bar.sync 0;
        xor.b32 %r4, %r2, 252;
        ld.shared.b32 %r1, [%r4];
    """
    assert torch.equal(lanes(body, threads=64), torch.arange(63, -1, -1, dtype=torch.int32))


def test_local_memory_belongs_to_a_thread():
    body = """
        .local .align 8 .b8 depot[16];
        mov.b64 %rd5, depot;
        st.local.b32 [%rd5+8], %r0;
        ld.local.b32 %r1, [%rd5+8];
    """
    assert torch.equal(lanes(body), LANE)


def test_constant_tables():
    text = kernel(
        "mul.wide.u32 %rd5, %r0, 2; mov.b64 %rd6, table; add.s64 %rd6, %rd6, %rd5;"
        "and.b32 %r2, %r0, 3; setp.eq.u32 %p1, %r2, %r0; mov.b32 %r1, 0;"
        f"@%p1 ld.global.u16 %r1, [%rd6]; {STORE}",
        1,
    )
    text = text.replace(".visible", ".global .align 2 .b16 table[4] = {5, 0x10, 7, 65535};\n.visible", 1)
    out = int32(32)
    ptx_emulator.run(text, (1, 1, 1), out)
    assert out.tolist() == [5, 16, 7, 65535] + [0] * 28


# ---- atomics


@pytest.mark.parametrize(
    ("operation", "value", "start", "end"),
    [
        ("add.u32", "%r0", 5, 5 + 496),
        ("min.s32", "%r0", 5, 0),
        ("max.u32", "%r0", 5, 31),
        ("and.b32", "-2", 5, 4),
        ("or.b32", "%r0", 32, 63),
        ("xor.b32", "%r0", 9, 9),
        ("exch.b32", "%r0", 9, 31),
        ("cas.b32", "9, %r0", 9, 0),
    ],
)
def test_atomics_take_turns_in_the_order_of_lanes(operation, value, start, end):
    target = torch.tensor([start], dtype=torch.int32)
    got = lanes(f"atom.global.gpu.acq_rel.{operation} %r1, [%rd1], {value};", target)
    assert target.item() == end and got[0] == start
    again = torch.tensor([start], dtype=torch.int32)
    run(f"red.relaxed.gpu.global.{operation} [%rd0], {value};", again)
    assert again.item() == end
    if operation == "add.u32":
        assert got.tolist() == [start + lane * (lane - 1) // 2 for lane in range(32)]


def test_atomics_on_some_equal_addresses():
    counts, out = torch.zeros(8, dtype=torch.int32), int32(32)
    run(
        "and.b32 %r2, %r0, 7; mad.wide.u32 %rd5, %r2, 4, %rd1; mov.b32 %r3, 2;"
        f"atom.add.u32 %r1, [%rd5], %r3; {STORE}",
        out,
        counts,
    )
    assert counts.tolist() == [8] * 8 and out.tolist() == [lane // 8 * 2 for lane in range(32)]


def test_float_and_wide_atomics():
    real, wide, half = torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.float16)
    run(
        """
        cvt.rn.f32.u32 %r2, %r0;
        red.global.add.f32 [%rd0], %r2;
        cvt.u64.u32 %rd5, %r0;
        shl.b64 %rd5, %rd5, 32;
        atom.global.add.u64 %rd6, [%rd1], %rd5;
        mov.b32 %r3, 0x40003C00;
        atom.global.add.noftz.f16x2 %r4, [%rd2], %r3;
        """,
        real,
        wide,
        half,
    )
    assert real.item() == 496 and wide.item() == 496 << 32 and half.tolist() == [32, 64]


# ---- copies


COPY = """
    shl.b32 %r2, %r0, 4;
    cvt.u64.u32 %rd5, %r2;
    add.s64 %rd5, %rd5, %rd1;
    cp.async.cg.shared.global [%r2], [%rd5], 16, {given};
    cp.async.commit_group;
    {wait}
    ld.shared.b32 %r1, [%r2+4];
"""


def test_copied_bytes_arrive_with_the_wait():
    x = torch.arange(128, dtype=torch.int32)
    waited = lanes(COPY.format(given="0x10", wait="cp.async.wait_group 0;"), x)
    assert torch.equal(waited, x.view(32, 4)[:, 1])
    assert torch.equal(lanes(COPY.format(given="16", wait="cp.async.wait_all;"), x), waited)
    for early in ("", "cp.async.wait_group 1;"):
        assert not lanes(COPY.format(given="16", wait=early), x).any()


def test_a_copy_of_nothing_fills_zeros_and_reads_nothing():
    assert not lanes(COPY.format(given="0", wait="cp.async.wait_group 0;"), int32(1)).any()


# ---- lanes


@pytest.mark.parametrize(
    ("mode", "offset", "clamp", "want"),
    [
        ("bfly", 1, 31, [lane ^ 1 for lane in range(32)]),
        ("bfly", 16, 31, [lane ^ 16 for lane in range(32)]),
        ("idx", 5, 31, [5] * 32),
        ("idx", 1, 0x1C1F, [lane // 4 * 4 + 1 for lane in range(32)]),
        ("up", 2, 0, [0, 1] + list(range(30))),
        ("down", 4, 31, [*range(4, 32), 28, 29, 30, 31]),
        ("down", 1, 0x181F, [lane + 1 if lane % 8 < 7 else lane for lane in range(32)]),
    ],
)
@pytest.mark.parametrize("fixed", [True, False], ids=["one pattern", "a pattern per lane"])
def test_shuffles(mode, offset, clamp, want, fixed):
    by_lane = "" if fixed else "mul.lo.u32 %r5, %r0, 0; add.u32 %r2, %r2, %r5;"
    body = f"mov.b32 %r2, {offset}; {by_lane} shfl.sync.{mode}.b32 %r1, %r0, %r2, {clamp}, -1;"
    assert lanes(body).tolist() == want


def test_a_shuffle_tells_which_lanes_were_in_range():
    got = lanes("shfl.sync.up.b32 %r2|%p1, %r0, 3, 0, -1; selp.b32 %r1, 1, 0, %p1;")
    assert got.tolist() == [0] * 3 + [1] * 29


def test_votes():
    body = "setp.lt.u32 %p1, %r0, 3; "
    assert lanes(body + "vote.sync.ballot.b32 %r1, %p1, -1;").eq(7).all()
    for mode, want in (("any", 1), ("all", 0), ("uni", 0)):
        assert lanes(body + f"vote.sync.{mode}.pred %p2, %p1, -1; selp.b32 %r1, 1, 0, %p2;").eq(want).all()
    only = lanes("mov.b32 %r1, 0; setp.gt.u32 %p1, %r0, 29; @%p1 activemask.b32 %r1;")
    assert only.tolist() == [0] * 30 + [-(2**30), -(2**30)]


@pytest.mark.parametrize(
    ("operation", "want"), [("add.s32", 496), ("min.u32", 0), ("max.s32", 31), ("or.b32", 31), ("and.b32", 0)]
)
def test_redux(operation, want):
    assert lanes(f"redux.sync.{operation} %r1, %r0, -1;").eq(want).all()


# ---- divergence and barriers


def test_threads_part_and_meet_again():
    body = """
        mov.b32 %r1, 0;
        and.b32 %r2, %r0, 7;
    $loop:
        setp.ge.u32 %p1, %r1, %r2;
        @%p1 bra $done;
        add.s32 %r1, %r1, 1;
        bra.uni $loop;
    $done:
        shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;
        add.s32 %r1, %r1, %r3;
    """
    assert lanes(body).tolist() == [2 * (lane & 6) + 1 for lane in range(0, 8)] * 4


def test_a_branch_on_a_negated_guard_and_early_returns():
    body = f"mov.b32 %r1, 1; setp.lt.u32 %p1, %r0, 4; @!%p1 bra $on; ret;\n$on:\n{STORE}"
    out = int32(32)
    run(body, out)
    assert out.tolist() == [0] * 4 + [1] * 28


def test_a_barrier_waits_for_warps_on_other_ways():
    body = """
        setp.lt.u32 %p1, %r0, 32;
        @%p1 bra $first;
        mov.b32 %r2, 5;
        st.shared.b32 [memory], %r2;
        bra.uni $meet;
    $first:
        mov.b32 %r2, 7;
        st.shared.b32 [memory+4], %r2;
    $meet:
        bar.sync 0;
        ld.shared.b32 %r1, [memory];
        ld.shared.b32 %r2, [memory+4];
        add.s32 %r1, %r1, %r2;
    """
    assert lanes(body, threads=64).eq(12).all()


def test_ctas_of_a_grid_have_their_own_numbers_and_shared_memory():
    out = torch.zeros(3 * 5, 32, dtype=torch.int32)
    text = kernel(
        """
        mov.u32 %r2, %ctaid.x;
        mov.u32 %r3, %ctaid.y;
        mov.u32 %r4, %nctaid.x;
        mad.lo.s32 %r5, %r3, %r4, %r2;
        atom.shared.add.u32 %r1, [memory], 1;
        mad.lo.s32 %r6, %r5, 32, %r0;
        mad.wide.u32 %rd5, %r6, 4, %rd0;
        mad.lo.s32 %r1, %r5, 100, %r1;
        st.global.b32 [%rd5], %r1;
        """,
        1,
    )
    for together in (32, 16384):
        out.zero_()
        with ptx_emulator.active(80, batch_threads=together):
            ptx_emulator.run(text, (3, 5, 1), out, shared=16)
        assert torch.equal(out, 100 * torch.arange(15, dtype=torch.int32)[:, None] + LANE)


# ---- tensor cores


def fragment_a(lane: int, register: int, element: int, each: int) -> tuple[int, int]:
    """Row and column, as PTX's figures draw A of m16n8."""
    row = lane // 4 + 8 * (register % 2)
    return row, (register // 2) * 4 * each + (lane % 4) * each + element


def fragment_b(lane: int, register: int, element: int, each: int) -> tuple[int, int]:
    return register * 4 * each + (lane % 4) * each + element, lane // 4


@pytest.mark.parametrize(
    ("form", "depth", "dtype"),
    [
        ("f16", 16, torch.float16),
        ("bf16", 16, torch.bfloat16),
        ("bf16", 8, torch.bfloat16),
        ("tf32", 8, torch.float32),
        ("s8", 32, torch.int8),
        ("e4m3", 32, torch.float8_e4m3fn),
        ("e5m2", 32, torch.float8_e5m2),
    ],
)
def test_mma(form, depth, dtype):
    each = 4 // torch.empty(0, dtype=dtype).element_size()
    sums = torch.int32 if form == "s8" else torch.float32
    a, b = (torch.randint(-8, 8, shape).to(dtype) for shape in ((16, depth), (depth, 8)))
    c, d = torch.randint(-50, 50, (16, 8)).to(sums), torch.zeros(32, 4, dtype=sums)
    a_count, b_count = 16 * depth // 32 // each, 8 * depth // 32 // each
    a_words, b_words = (
        torch.zeros(32, a_count, each, dtype=dtype),
        torch.zeros(32, b_count, each, dtype=dtype),
    )
    c_words = torch.zeros(32, 4, dtype=sums)
    for lane in range(32):
        for element in range(each):
            for j in range(a_count):
                a_words[lane, j, element] = a[fragment_a(lane, j, element, each)]
            for j in range(b_count):
                b_words[lane, j, element] = b[fragment_b(lane, j, element, each)]
        for j in range(4):
            c_words[lane, j] = c[lane // 4 + 8 * (j // 2), lane % 4 * 2 + j % 2]
    registers, loads = [], []
    for pointer, count, first in ((1, a_count, 1), (2, b_count, 5), (3, 4, 9)):
        names = [f"%r{first + j}" for j in range(count)]
        loads.append(f"mad.wide.u32 %rd9, %r0, {4 * count}, %rd{pointer};")
        loads += [f"ld.global.b32 {name}, [%rd9+{4 * j}];" for j, name in enumerate(names)]
        registers.append("{" + ", ".join(names) + "}")
    type_ = "s32" if form == "s8" else "f32"
    name = f"mma.sync.aligned.m16n8k{depth}.row.col.{type_}.{form}.{form}.{type_}"
    run(
        "\n".join(loads)
        + f"\n{name} {{%r20, %r21, %r22, %r23}}, {', '.join(registers)};"
        + "mad.wide.u32 %rd9, %r0, 16, %rd0; st.global.v4.b32 [%rd9], {%r20, %r21, %r22, %r23};",
        d,
        a_words.view(torch.int32) if each == 1 else a_words.view(torch.int8),
        b_words.view(torch.int32) if each == 1 else b_words.view(torch.int8),
        c_words,
    )
    want = a.double() @ b.double() + c.double()
    for lane in range(32):
        for j in range(4):
            assert d[lane, j].item() == want[lane // 4 + 8 * (j // 2), lane % 4 * 2 + j % 2].item()


def test_tf32_drops_the_low_bits():
    """1 + 2**-12 is 1 to the tensor cores."""
    d = torch.zeros(32)
    run(
        "mov.b32 %r1, 0f3F800800; mov.b32 %r2, 0f3F800000; mov.b32 %r3, 0;"
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
        "{%r4, %r5, %r6, %r7}, {%r1, %r1, %r1, %r1}, {%r2, %r2}, {%r3, %r3, %r3, %r3};"
        "mad.wide.u32 %rd9, %r0, 4, %rd0; st.global.b32 [%rd9], %r4;",
        d,
    )
    assert d.eq(8).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["", "trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count, transposed):
    x = torch.arange(count * 64, dtype=torch.int16).view(count, 8, 8)
    words, back = torch.zeros(32, count, 2, dtype=torch.int16), torch.zeros_like(x)
    names = "{" + ", ".join(f"%r{10 + j}" for j in range(count)) + "}"
    form = f"sync.aligned.m8n8.x{count}{'.trans' * transposed}.shared.b16"
    move = "\n".join(
        f"mad.wide.u32 %rd9, %r0, 4, %rd1; ld.global.b32 %r3, [%rd9+{128 * j}];"
        f"shl.b32 %r4, %r0, 2; st.shared.b32 [%r4+{128 * j}], %r3;"
        for j in range(count)
    )
    store = "".join(f"st.global.b32 [%rd9+{4 * j}], %r{10 + j};" for j in range(count))
    show = "\n".join(
        f"ld.shared.b32 %r3, [%r4+{512 + 128 * j}]; mad.wide.u32 %rd9, %r0, 4, %rd2;"
        f"st.global.b32 [%rd9+{128 * j}], %r3;"
        for j in range(count)
    )
    rows = f"and.b32 %r5, %r0, {8 * count - 1}; shl.b32 %r5, %r5, 4;"
    run(
        f"{move} {rows} ldmatrix.{form} {names}, [%r5]; mad.wide.u32 %rd9, %r0, {4 * count}, %rd0; {store}"
        f"stmatrix.{form} [%r5+512], {names}; {show}",
        words,
        x,
        back,
    )
    for lane in range(32):
        pair = (
            x[:, :, lane // 4][:, 2 * (lane % 4) :][:, :2]
            if transposed
            else x[:, lane // 4][:, 2 * (lane % 4) :][:, :2]
        )
        assert torch.equal(words[lane], pair)
    assert torch.equal(back, x)


# ---- instructions without an effect here


def test_fences_and_hints_do_nothing():
    body = """
        membar.gl; fence.acq_rel.gpu; griddepcontrol.wait; nanosleep.u32 5; prefetch.global.L2 [%rd0];
        discard.global.L2 [%rd0], 128; applypriority.global.L2::evict_normal [%rd0], 128; bar.warp.sync -1;
        mov.b32 %r1, 3;
    """
    assert lanes(body).eq(3).all()


# ---- checks


def fails(message: str, body: str, *tensors: torch.Tensor, threads: int = 32) -> None:
    with pytest.raises(PTXError, match=message):
        run(body, *tensors, threads=threads)


@pytest.mark.parametrize(
    "access", ["ld.global.b32 %r1, [%rd5];", "st.global.b32 [%rd5], %r0;", "red.add.u32 [%rd5], 1;"]
)
@pytest.mark.parametrize("start", [-4, 4], ids=["below", "above"])
def test_an_access_outside_its_tensor(access, start):
    x = torch.zeros(34, dtype=torch.int32)
    body = f"mad.wide.u32 %rd5, %r0, 4, %rd0; {{}}{access}"
    run(body.format(""), x[1:33])
    fails("out-of-bounds global access of 4 bytes", body.format(f"add.s64 %rd5, %rd5, {start}; "), x[1:33])


def test_an_access_to_the_wrong_tensor():
    """The neighbour is an argument too, but the address was made from another one."""
    x = int32(64)
    body = "mad.wide.u32 %rd5, %r0, 4, %rd0; ld.global.b32 %r1, [%rd5+{}];"
    run(body.format(0), x[:32], x[32:])
    fails("argument 0", body.format(128), x[:32], x[32:])


@pytest.mark.parametrize("address", [0, 8, 2**40, 2**62, 2**63 - 8, -8, -(2**62), -(2**63)])
@pytest.mark.parametrize("tensors", [1, 2])
def test_an_access_anywhere(address, tensors):
    """By an address that was loaded, so that any of the tensors will do, and by one that was not."""
    x = [torch.full((8,), address) for _ in range(tensors)]
    load = "ld.global.b64 %rd5, [%rd5];"
    fails("out-of-bounds", f"ld.global.b64 %rd5, [%rd0]; {load}", *x)
    lane = "cvt.u64.u32 %rd6, %r0; shl.b64 %rd6, %rd6, 3; add.s64 %rd5, %rd5, %rd6;"
    fails("out-of-bounds", f"ld.global.b64 %rd5, [%rd0]; {lane} {load}", *x)
    fails("out-of-bounds", f"add.s64 %rd5, %rd0, {address or 64}; {lane} {load}", *x)


def test_an_access_across_the_end_of_its_tensor():
    x = torch.zeros(3, dtype=torch.int32)
    fails("out-of-bounds", "ld.global.v2.b32 {%r1, %r2}, [%rd0+8];", x)


def test_an_address_is_either_an_argument_or_loaded():
    """It may then lead to any tensor: here to the second one."""
    x, y, out = torch.zeros(1, dtype=torch.int64), torch.full((32,), 7, dtype=torch.int32), int32(32)
    x[0] = y.data_ptr()
    run(
        "ld.global.b64 %rd6, [%rd1]; setp.gt.u32 %p1, %r0, 99; selp.b64 %rd5, %rd0, %rd6, %p1;"
        f"ld.global.b32 %r1, [%rd5]; {STORE}",
        out,
        x,
        y,
    )
    assert out.eq(7).all()


def test_a_guard_protects_an_access():
    x = int32(16)
    body = "setp.lt.u32 %p1, %r0, {}; mad.wide.u32 %rd5, %r0, 4, %rd0; @%p1 st.global.b32 [%rd5], %r0;"
    run(body.format(16), x)
    fails("out-of-bounds", body.format(17), x)


def test_a_misaligned_access():
    x = int32(64)
    fails("misaligned global", "ld.global.v2.b32 {%r1, %r2}, [%rd0+4];", x)
    fails("misaligned shared", "ld.shared.b32 %r1, [memory+2];")


def test_an_access_outside_shared_memory():
    fails("out-of-bounds shared", "ld.shared.b32 %r1, [memory+1024];")
    fails("out-of-bounds shared", "mov.b32 %r2, 0; st.shared.b32 [%r2+-4], %r0;")


def test_an_access_outside_local_memory():
    fails(
        "out-of-bounds local",
        ".local .align 4 .b8 depot[4]; mov.b64 %rd5, depot; st.local.b32 [%rd5+4], %r0;",
    )


def test_warps_that_read_what_another_wrote_without_a_barrier():
    body = (
        "shl.b32 %r2, %r0, 2; st.shared.b32 [%r2], %r0; {} xor.b32 %r3, %r2, 128; ld.shared.b32 %r1, [%r3];"
    )
    run(body.format("bar.sync 0;"), threads=64)
    fails("race", body.format(""), threads=64)


def test_warps_that_write_what_another_read_without_a_barrier():
    body = (
        "shl.b32 %r2, %r0, 2; ld.shared.b32 %r1, [%r2]; {} xor.b32 %r3, %r2, 128; st.shared.b32 [%r3], %r0;"
    )
    run(body.format("bar.sync 0;"), threads=64)
    fails("race", body.format(""), threads=64)


def test_a_reader_among_several_is_not_forgotten():
    """Both warps read a word; then one of them writes it."""
    body = "ld.shared.b32 %r1, [memory]; {} setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.b32 [memory], %r0;"
    run(body.format("bar.sync 0;"), threads=64)
    fails("race", body.format(""), threads=64)


def test_lanes_that_write_different_values_to_one_place():
    run("mov.b32 %r1, 5; st.shared.b32 [memory], %r1;", threads=64)
    fails("different values", "st.shared.b32 [memory], %r0;")


def test_a_copy_races_when_it_arrives():
    body = """
        shl.b32 %r2, %r0, 2;
        mad.wide.u32 %rd5, %r0, 4, %rd0;
        cp.async.ca.shared.global [%r2], [%rd5], 4;
        cp.async.commit_group;
        cp.async.wait_group 0;
        {}
        xor.b32 %r3, %r2, 128;
        ld.shared.b32 %r1, [%r3];
    """
    run(body.format("bar.sync 0;"), int32(64), threads=64)
    fails("race", body.format(""), int32(64), threads=64)


def test_a_shuffle_from_an_inactive_lane():
    body = "setp.lt.u32 %p1, %r0, {}; @%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;"
    run(body.format(16))
    fails("inactive lane", body.format(15))
    fails(
        "inactive lane",
        "setp.eq.u32 %p1, %r0, 3; @%p1 bra $out; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;\n$out:",
    )


def test_tensor_cores_with_inactive_lanes():
    four = "{%r0, %r0, %r0, %r0}"
    name = "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"
    mma = f"{name} {{%r1, %r2, %r3, %r4}}, {{%r0, %r0}}, {{%r0}}, {four};"
    run(f"setp.lt.u32 %p1, %r0, 32; @%p1 {mma}", threads=64)
    fails("inactive lanes", f"setp.lt.u32 %p1, %r0, 33; @%p1 {mma}", threads=64)


def test_a_barrier_does_not_wait_for_threads_that_returned():
    body = f"setp.lt.u32 %p1, %r0, 32; @%p1 bra $end; mov.b32 %r1, 1; bar.sync 0; {STORE}\n$end:"
    out = int32(64)
    run(body, out, threads=64)
    assert out.tolist() == [0] * 32 + [1] * 32


def test_threads_of_a_cta_at_different_barriers():
    body = "setp.lt.u32 %p1, %r0, 32; @%p1 bra $a; bar.sync 0; bra.uni $b;\n$a:\nbar.sync 0;\n$b:"
    fails("different barriers", body, threads=64)


def test_a_program_that_does_not_end():
    with ptx_emulator.active(80, max_blocks=100), pytest.raises(PTXError, match="wait for"):
        ptx_emulator.run(kernel("$loop:\nbra.uni $loop;"), (1, 1, 1))


def test_a_trap():
    run("setp.gt.u32 %p1, %r0, 99; @%p1 trap;")
    fails("trap", "setp.gt.u32 %p1, %r0, 9; @%p1 trap;")


@pytest.mark.parametrize(
    "text",
    [
        "tcgen05.fence;",
        "add.rn.f32x2 %rd1, %rd1, %rd1;",
        "mul.hi.s16 %rs1, %rs1, %rs1;",
        "mov.b32 %x, 1;",
        "add.sat.f32 %r1, %r1, %r1;",
        "bar.sync 1, 32;",
        "mov.b32 %r1, %what;",
    ],
)
def test_unknown_ptx_is_named(text):
    fails(text.split()[0].rstrip(";").replace(".", r"\."), text)


def test_an_error_names_the_instruction():
    fails(r"ld\.global\.b32 %r1, \[%rd0\+4\] \(snippet", "ld.global.b32 %r1, [%rd0+4];", int32(1))


def test_numbers_of_a_warp_are_those_of_numpy():
    """%laneid and %warpid."""
    got = lanes("mov.u32 %r2, %warpid; mov.u32 %r3, %laneid; mad.lo.s32 %r1, %r2, 100, %r3;", threads=64)
    assert np.array_equal(got.numpy(), np.concatenate([np.arange(32), 100 + np.arange(32)]))
