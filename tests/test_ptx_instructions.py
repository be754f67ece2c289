# SPDX-License-Identifier: Apache-2.0
"""Each instruction does what PTX says: hand-written operands and results."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ptx import bits, evaluate

from ptx_emulator.instructions.step import TRANSLATORS
from ptx_emulator.values import TYPES

INF, NAN = float("inf"), float("nan")
TOP = 2**31 - 1
BOTTOM = -(2**31)
BIG = 2**63 - 1
ONE_BF16, HALF_BF16, THREE_BF16, NAN_BF16 = 0x3F80, 0x3F00, 0x4040, 0x7FFF

# instruction, types of %a %b %c, type of %d, rows of (a, b, ..., d)
CASES = [
    # integers
    ("add.s32 %d, %a, %b;", "s32 s32", "s32", [(3, -5, -2), (TOP, 1, BOTTOM)]),
    ("add.s64 %d, %a, %b;", "s64 s64", "s64", [(2**40, -1, 2**40 - 1), (BIG, 1, -(2**63))]),
    ("add.u16 %d, %a, 2;", "u16", "u16", [(65535, 1), (7, 9)]),
    ("sub.s32 %d, %a, %b;", "s32 s32", "s32", [(3, 5, -2), (BOTTOM, 1, TOP)]),
    ("mul.lo.s32 %d, %a, %b;", "s32 s32", "s32", [(-3, 5, -15), (65536, 65536, 0), (TOP, 2, -2)]),
    ("mul.lo.u64 %d, %a, %b;", "u64 u64", "u64", [(2**63, 2, 0), (10**10, 10**9, 10**19 % 2**64)]),
    ("mul.lo.s16 %d, %a, %b;", "s16 s16", "s16", [(-3, 5, -15), (256, 256, 0)]),
    ("mul.hi.u32 %d, %a, %b;", "u32 u32", "u32", [(2**31, 6, 3), (2**32 - 1, 2**32 - 1, 2**32 - 2)]),
    ("mul.hi.s32 %d, %a, %b;", "s32 s32", "s32", [(-1, 1, -1), (BOTTOM, BOTTOM, 2**30), (7, 9, 0)]),
    ("mul.hi.u64 %d, %a, %b;", "u64 u64", "u64", [(2**63, 6, 3), (2**64 - 1, 2**64 - 1, 2**64 - 2)]),
    ("mul.hi.s64 %d, %a, %b;", "s64 s64", "s64", [(-1, 1, -1), (-(2**63), 2, -1), (2**62, 8, 2)]),
    ("mul.wide.s32 %d, %a, %b;", "s32 s32", "s64", [(-3, TOP, -3 * TOP), (BOTTOM, BOTTOM, 2**62)]),
    ("mul.wide.u32 %d, %a, %b;", "u32 u32", "u64", [(2**32 - 1, 2, 2**33 - 2)]),
    ("mul.wide.u16 %d, %a, %b;", "u16 u16", "u32", [(65535, 65535, 65535**2)]),
    ("mad.lo.s32 %d, %a, %b, %c;", "s32 s32 s32", "s32", [(3, -5, 1, -14), (TOP, 2, 3, 1)]),
    ("mad.hi.u32 %d, %a, %b, %c;", "u32 u32 u32", "u32", [(2**31, 6, 5, 8)]),
    ("mad.wide.s32 %d, %a, %b, %c;", "s32 s32 s64", "s64", [(-2, 2**30, 5, 5 - 2**31)]),
    ("mad.lo.s64 %d, %a, %b, %c;", "s64 s64 s64", "s64", [(2**33, 2**10, -1, 2**43 - 1)]),
    ("div.s32 %d, %a, %b;", "s32 s32", "s32", [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3)]),
    ("div.u32 %d, %a, %b;", "u32 u32", "u32", [(2**32 - 1, 2, TOP), (5, 7, 0)]),
    ("div.s64 %d, %a, %b;", "s64 s64", "s64", [(-(10**12), 7, -142857142857)]),
    ("rem.s32 %d, %a, %b;", "s32 s32", "s32", [(7, 3, 1), (-7, 3, -1), (7, -3, 1)]),
    ("rem.u64 %d, %a, %b;", "u64 u64", "u64", [(2**63 + 5, 2**63, 5)]),
    ("abs.s32 %d, %a;", "s32", "s32", [(-5, 5), (5, 5), (BOTTOM, BOTTOM)]),
    ("neg.s32 %d, %a;", "s32", "s32", [(-5, 5), (7, -7)]),
    ("neg.s64 %d, %a;", "s64", "s64", [(2**40, -(2**40))]),
    ("min.s32 %d, %a, %b;", "s32 s32", "s32", [(-1, 1, -1), (3, 2, 2)]),
    ("min.u32 %d, %a, %b;", "u32 u32", "u32", [(2**32 - 1, 1, 1)]),
    ("min.relu.s32 %d, %a, %b;", "s32 s32", "s32", [(-1, 1, 0), (3, 2, 2)]),
    ("max.relu.s32 %d, %a, %b;", "s32 s32", "s32", [(-1, -3, 0), (3, -2, 3)]),
    ("max.s64 %d, %a, %b;", "s64 s64", "s64", [(-1, 1, 1)]),
    ("max.u64 %d, %a, %b;", "u64 u64", "u64", [(2**64 - 1, 1, 2**64 - 1)]),
    # extended precision, through the carry flag
    (
        "{ .reg .b32 %l; add.cc.u32 %l, %a, %b; addc.u32 %d, %c, 0; }",
        "u32 u32 u32",
        "u32",
        [(2**32 - 1, 1, 5, 6), (1, 1, 5, 5)],
    ),
    (
        "{ .reg .b32 %l; sub.cc.u32 %l, %a, %b; subc.u32 %d, %c, 0; }",
        "u32 u32 u32",
        "u32",
        [(0, 1, 5, 4), (1, 1, 5, 5)],
    ),
    (
        "{ .reg .b32 %l; mad.lo.cc.u32 %l, %a, %b, %c; madc.hi.u32 %d, %a, %b, 0; }",
        "u32 u32 u32",
        "u32",
        [(2**31, 3, 2**31, 2), (2**31, 3, 1, 1)],
    ),
    # bits
    ("and.b32 %d, %a, %b;", "b32 b32", "b32", [(0b1100, 0b1010, 0b1000)]),
    ("and.pred %d, %a, %b;", "pred pred", "pred", [(1, 0, 0), (1, 1, 1)]),
    ("or.b64 %d, %a, %b;", "b64 b64", "b64", [(2**63, 1, 2**63 + 1)]),
    ("xor.b16 %d, %a, %b;", "b16 b16", "b16", [(0xFFFF, 0x0F0F, 0xF0F0)]),
    ("not.b32 %d, %a;", "b32", "b32", [(0, 2**32 - 1)]),
    ("not.pred %d, %a;", "pred", "pred", [(0, 1), (1, 0)]),
    ("shl.b32 %d, %a, %b;", "b32 u32", "b32", [(1, 31, 2**31), (1, 32, 0), (3, 1, 6), (1, 255, 0)]),
    ("shl.b64 %d, %a, 33;", "b64", "b64", [(3, 3 << 33)]),
    ("shr.u32 %d, %a, %b;", "u32 u32", "u32", [(2**31, 31, 1), (2**31, 32, 0), (8, 2, 2)]),
    ("shr.s32 %d, %a, %b;", "s32 u32", "s32", [(-8, 1, -4), (-8, 40, -1), (8, 40, 0)]),
    ("shr.s64 %d, %a, 4;", "s64", "s64", [(-32, -2)]),
    ("shr.u16 %d, %a, 4;", "u16", "u16", [(0x1234, 0x123)]),
    (
        "shf.l.wrap.b32 %d, %a, %b, %c;",
        "b32 b32 u32",
        "b32",
        [(0x80000000, 1, 1, 3), (0x80000000, 1, 33, 3)],
    ),
    (
        "shf.r.clamp.b32 %d, %a, %b, %c;",
        "b32 b32 u32",
        "b32",
        [(2, 1, 1, 0x80000001), (2, 1, 40, 1)],
    ),
    ("lop3.b32 %d, %a, %b, %c, 0x96;", "b32 b32 b32", "b32", [(0b1100, 0b1010, 0b0110, 0)]),  # a ^ b ^ c
    (
        "lop3.b32 %d, %a, %b, %c, 0xCA;",
        "b32 b32 b32",
        "b32",
        [(0b1100, 0b1010, 0b0110, 0b1010)],
    ),  # a ? b : c
    (
        "bfe.u32 %d, %a, %b, %c;",
        "u32 u32 u32",
        "u32",
        [(0xABCD, 4, 8, 0xBC), (0xABCD, 4, 0, 0), (2**31, 31, 5, 1), (7, 32, 4, 0)],
    ),
    (
        "bfe.s32 %d, %a, %b, %c;",
        "s32 u32 u32",
        "s32",
        [(0xF0, 4, 4, -1), (0x70, 4, 4, 7), (BOTTOM, 31, 5, -1), (-1, 3, 0, 0), (-5, 40, 3, -1)],
    ),
    (
        "bfe.u64 %d, %a, %b, %c;",
        "u64 u32 u32",
        "u64",
        [(0xAB << 50, 50, 8, 0xAB), (2**64 - 1, 0, 64, 2**64 - 1)],
    ),
    (
        "bfi.b32 %d, %a, %b, %c, 8;",
        "b32 b32 u32",
        "b32",
        [(0xAB, 0x11111111, 8, 0x1111AB11), (0xAB, 0x11111111, 28, 0xB1111111), (0xAB, 5, 32, 5)],
    ),
    ("bfi.b64 %d, %a, %b, 32, 64;", "b64 b64", "b64", [(7, 9, (7 << 32) + 9)]),
    (
        "prmt.b32 %d, %a, %b, %c;",
        "b32 b32 b32",
        "b32",
        [
            (0x33221100, 0x77665544, 0x7531, 0x77553311),
            (0x33221100, 0x77665544, 0x3210, 0x33221100),
            (0x80, 0x7F000000, 0xF08F, 0x0080FF00),
        ],
    ),
    ("popc.b32 %d, %a;", "b32", "u32", [(0, 0), (0xF0F0, 8), (2**32 - 1, 32)]),
    ("popc.b64 %d, %a;", "b64", "u32", [(2**64 - 1, 64)]),
    ("clz.b32 %d, %a;", "b32", "u32", [(0, 32), (1, 31), (2**31, 0), (0x00800000, 8)]),
    ("clz.b64 %d, %a;", "b64", "u32", [(0, 64), (2**40, 23)]),
    ("brev.b32 %d, %a;", "b32", "b32", [(1, 2**31), (0b1011, 0b1101 << 28)]),
    # moves
    ("mov.b32 %d, %a;", "b32", "b32", [(7, 7)]),
    ("mov.b32 %d, -2;", "b32", "s32", [(0, -2)]),
    ("mov.b32 %d, 0f3FC00000;", "b32", "f32", [(0, 1.5)]),
    ("mov.b64 %d, 0d4004000000000000;", "b32", "f64", [(0, 2.5)]),
    ("mov.u32 %d, %laneid;", "b32", "u32", [(0, lane) for lane in range(32)]),
    ("mov.b32 %d, {%a, %b};", "b16 b16", "b32", [(0x1234, 0xABCD, 0xABCD1234)]),
    ("mov.b64 %d, {%a, %b};", "b32 b32", "b64", [(1, 2, 2**33 + 1)]),
    ("{ .reg .b32 %l; mov.b64 {%l, %d}, %a; }", "b64", "b32", [(2**33 + 1, 2)]),
    ("{ .reg .b16 %h; mov.b32 {%d, %h}, %a; }", "b32", "b16", [(0xABCD1234, 0x1234)]),
    ("cvta.to.global.u64 %d, %a;", "u64", "u64", [(77, 77)]),
    ("selp.b32 %d, %a, %b, %c;", "b32 b32 pred", "b32", [(1, 2, 1, 1), (1, 2, 0, 2)]),
    ("selp.f32 %d, 0f3F800000, %a, %b;", "f32 pred", "f32", [(3, 1, 1), (3, 0, 3)]),
    ("createpolicy.fractional.L2::evict_first.b64 %d, 1.0;", "b32", "b64", [(0, 0)]),
    # comparison
    ("setp.lt.s32 %d, %a, %b;", "s32 s32", "pred", [(-1, 0, 1), (0, 0, 0)]),
    ("setp.lt.u32 %d, %a, %b;", "u32 u32", "pred", [(-1, 0, 0)]),
    ("setp.ge.s64 %d, %a, %b;", "s64 s64", "pred", [(-1, 0, 0), (2**40, 1, 1)]),
    ("setp.hi.u32 %d, %a, %b;", "u32 u32", "pred", [(-1, 0, 1)]),
    ("setp.eq.b16 %d, %a, %b;", "b16 b16", "pred", [(3, 3, 1), (3, 4, 0)]),
    ("setp.ne.and.s32 %d, %a, %b, %c;", "s32 s32 pred", "pred", [(1, 2, 1, 1), (1, 2, 0, 0), (1, 1, 1, 0)]),
    ("{ .reg .pred %q; setp.eq.s32 %q|%d, %a, %b; }", "s32 s32", "pred", [(1, 1, 0), (1, 2, 1)]),
    ("setp.lt.f32 %d, %a, %b;", "f32 f32", "pred", [(1, 2, 1), (NAN, 2, 0), (2, 2, 0)]),
    ("setp.ne.f32 %d, %a, %b;", "f32 f32", "pred", [(1, 2, 1), (NAN, 2, 0), (2, 2, 0)]),
    ("setp.neu.f32 %d, %a, %b;", "f32 f32", "pred", [(1, 2, 1), (NAN, 2, 1), (2, 2, 0)]),
    ("setp.geu.f32 %d, %a, %b;", "f32 f32", "pred", [(1, 2, 0), (NAN, 2, 1), (2, 2, 1)]),
    ("setp.leu.f64 %d, %a, %b;", "f64 f64", "pred", [(3, 2, 0), (NAN, 2, 1)]),
    ("setp.gtu.f32 %d, %a, %b;", "f32 f32", "pred", [(3, 2, 1), (NAN, 2, 1), (1, 2, 0)]),
    ("setp.ltu.f32 %d, %a, %b;", "f32 f32", "pred", [(3, 2, 0), (NAN, 2, 1)]),
    ("setp.equ.f32 %d, %a, %b;", "f32 f32", "pred", [(2, 2, 1), (NAN, 2, 1), (1, 2, 0)]),
    ("setp.nan.f32 %d, %a, %b;", "f32 f32", "pred", [(2, 2, 0), (2, NAN, 1)]),
    ("setp.num.f32 %d, %a, %b;", "f32 f32", "pred", [(2, 2, 1), (2, NAN, 0)]),
    ("setp.gt.bf16 %d, %a, %b;", "bf16 bf16", "pred", [(ONE_BF16, HALF_BF16, 1)]),
    ("setp.gt.f16 %d, %a, %b;", "f16 f16", "pred", [(1.5, -2, 1)]),
    ("setp.nan.bf16x2 %d|%p7, %a, %b;", "b32 b32", "pred", [(0x3F807FFF, 0x3F803F80, 1), (0x7FFF3F80, 0, 0)]),
    ("setp.nan.bf16x2 %p7|%d, %a, %b;", "b32 b32", "pred", [(0x3F807FFF, 0x3F803F80, 0), (0x7FFF3F80, 0, 1)]),
    ("setp.gt.f16x2 %d|%p7, %a, %b;", "b32 b32", "pred", [(0x00003E00, 0x4000C000, 1)]),
    ("set.nan.f16x2.f16x2 %d, %a, %b;", "b32 b32", "b32", [(0x3C007E00, 0x3C003C00, 0x00003C00)]),
    ("set.gt.bf16x2.bf16x2 %d, %a, %b;", "b32 b32", "b32", [(0x3F804040, 0x40403F80, 0x00003F80)]),
    # floating point
    ("add.f32 %d, %a, %b;", "f32 f32", "f32", [(1, 2**-24, 1), (1, 2**-23, 1 + 2**-23), (INF, -INF, NAN)]),
    ("add.rn.f32 %d, %a, %b;", "f32 f32", "f32", [(2**-140, 2**-140, 2**-139)]),
    ("add.ftz.f32 %d, %a, %b;", "f32 f32", "f32", [(1e-40, 1, 1), (2**-126, -1.5 * 2**-126, -0.0)]),
    ("add.f64 %d, %a, %b;", "f64 f64", "f64", [(1, 2**-52, 1 + 2**-52)]),
    ("sub.f32 %d, %a, %b;", "f32 f32", "f32", [(1, 2**-25, 1), (3, 4, -1)]),
    ("mul.f32 %d, %a, %b;", "f32 f32", "f32", [(3, -0.5, -1.5), (1e30, 1e30, INF)]),
    ("mul.f16 %d, %a, %b;", "f16 f16", "f16", [(3, -0.5, -1.5), (300, 300, INF)]),
    (
        "fma.rn.f32 %d, %a, %b, %c;",
        "f32 f32 f32",
        "f32",
        [(1 + 2**-12, 1 - 2**-12, -1, -(2**-24)), (2, 3, 1, 7)],
    ),
    ("fma.rn.f16 %d, %a, %b, %c;", "f16 f16 f16", "f16", [(1 + 2**-6, 1 - 2**-6, -1, -(2**-12))]),
    ("fma.rn.f64 %d, %a, %b, %c;", "f64 f64 f64", "f64", [(2, 3, 1, 7)]),
    ("fma.rn.bf16 %d, %a, %b, %c;", "bf16 bf16 bf16", "bf16", [(ONE_BF16, THREE_BF16, ONE_BF16, 0x4080)]),
    (
        "fma.rn.bf16x2 %d, %a, %b, %c;",
        "b32 b32 b32",
        "b32",
        [(0x3F803F80, 0x40403F00, 0x3F803F80, 0x40803FC0)],
    ),
    ("add.f16x2 %d, %a, %b;", "b32 b32", "b32", [(0x3C004000, 0x3C003C00, 0x40004200)]),
    ("mul.bf16x2 %d, %a, %b;", "b32 b32", "b32", [(0x3F804040, 0x3F003F00, 0x3F003FC0)]),
    ("div.full.f32 %d, %a, %b;", "f32 f32", "f32", [(1, 4, 0.25), (1, 0, INF)]),
    ("div.rn.f64 %d, %a, %b;", "f64 f64", "f64", [(1, 3, 1 / 3)]),
    ("abs.f32 %d, %a;", "f32", "f32", [(-1.5, 1.5), (-INF, INF)]),
    ("neg.f32 %d, %a;", "f32", "f32", [(-1.5, 1.5), (0.0, -0.0)]),
    ("min.f32 %d, %a, %b;", "f32 f32", "f32", [(1, 2, 1), (NAN, 2, 2)]),
    ("max.f32 %d, %a, %b;", "f32 f32", "f32", [(1, 2, 2), (NAN, 2, 2)]),
    ("max.NaN.f32 %d, %a, %b;", "f32 f32", "f32", [(1, 2, 2), (NAN, 2, NAN)]),
    ("min.f64 %d, %a, %b;", "f64 f64", "f64", [(1, 2, 1)]),
    ("max.bf16x2 %d, %a, %b;", "b32 b32", "b32", [(0x3F804040, 0x40403F80, 0x40404040)]),
    ("copysign.f32 %d, %a, %b;", "f32 f32", "f32", [(-1, 3, -3), (1, -3, 3)]),
    ("ex2.approx.f32 %d, %a;", "f32", "f32", [(3, 8), (-INF, 0), (0.5, 2**0.5), (-130, 2**-130)]),
    ("ex2.approx.ftz.f32 %d, %a;", "f32", "f32", [(3, 8), (-130, 0)]),
    ("lg2.approx.f32 %d, %a;", "f32", "f32", [(8, 3), (0, -INF), (-1, NAN), (10, np.log2(10))]),
    ("rcp.approx.f32 %d, %a;", "f32", "f32", [(4, 0.25), (0, INF)]),
    ("rcp.rn.f64 %d, %a;", "f64", "f64", [(4, 0.25)]),
    ("sqrt.rn.f32 %d, %a;", "f32", "f32", [(9, 3), (-1, NAN)]),
    ("sqrt.rn.f64 %d, %a;", "f64", "f64", [(2, 2**0.5)]),
    ("rsqrt.approx.f32 %d, %a;", "f32", "f32", [(4, 0.5)]),
    ("sin.approx.f32 %d, %a;", "f32", "f32", [(0, 0), (1, np.sin(1))]),
    ("cos.approx.f32 %d, %a;", "f32", "f32", [(0, 1), (1, np.cos(1))]),
    ("tanh.approx.f32 %d, %a;", "f32", "f32", [(0, 0), (1, np.tanh(1))]),
    # conversion
    ("cvt.u32.u16 %d, %a;", "u16", "u32", [(65535, 65535)]),
    ("cvt.s32.s16 %d, %a;", "s16", "s32", [(-3, -3)]),
    ("cvt.s32.s8 %d, %a;", "b32", "s32", [(0x80, -128), (0x17F, 127)]),
    ("cvt.u16.u32 %d, %a;", "u32", "u16", [(0x12345, 0x2345)]),
    ("cvt.s64.s32 %d, %a;", "s32", "s64", [(-1, -1)]),
    ("cvt.u64.u32 %d, %a;", "u32", "u64", [(-1, 2**32 - 1)]),
    ("cvt.sat.s8.s32 %d, %a;", "s32", "s16", [(300, 127), (-300, -128), (5, 5)]),
    ("cvt.rn.f32.s32 %d, %a;", "s32", "f32", [(-3, -3), (2**24 + 1, 2**24)]),
    ("cvt.rn.f32.u32 %d, %a;", "u32", "f32", [(2**32 - 1, 2**32)]),
    ("cvt.rn.f64.s64 %d, %a;", "s64", "f64", [(-(2**53), -(2**53))]),
    ("cvt.rzi.s32.f32 %d, %a;", "f32", "s32", [(-1.9, -1), (3e9, TOP), (-INF, BOTTOM), (NAN, 0)]),
    ("cvt.rni.s32.f32 %d, %a;", "f32", "s32", [(2.5, 2), (3.5, 4), (-0.6, -1)]),
    ("cvt.rzi.u32.f32 %d, %a;", "f32", "u32", [(-1, 0), (3e9, 3000000000)]),
    ("cvt.rzi.s64.f32 %d, %a;", "f32", "s64", [(-1e10, -(10**10)), (1e30, BIG), (-1e30, -(2**63))]),
    ("cvt.rzi.u64.f64 %d, %a;", "f64", "u64", [(2.0**63, 2**63), (1e30, 2**64 - 1)]),
    ("cvt.rmi.f32.f32 %d, %a;", "f32", "f32", [(-1.5, -2), (1.5, 1)]),
    ("cvt.rpi.f32.f32 %d, %a;", "f32", "f32", [(-1.5, -1), (1.5, 2)]),
    ("cvt.f64.f32 %d, %a;", "f32", "f64", [(0.5, 0.5)]),
    ("cvt.rn.f32.f64 %d, %a;", "f64", "f32", [(1 + 2**-30, 1), (1e300, INF)]),
    ("cvt.rn.f16.f32 %d, %a;", "f32", "f16", [(1 + 2**-11, 1), (70000, INF), (2**-24, 2**-24)]),
    ("cvt.f32.f16 %d, %a;", "f16", "f32", [(1.5, 1.5)]),
    (
        "cvt.rn.bf16.f32 %d, %a;",
        "f32",
        "bf16",
        [(1, ONE_BF16), (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (NAN, NAN_BF16), (3.4e38, 0x7F80)],
    ),
    ("cvt.f32.bf16 %d, %a;", "bf16", "f32", [(0xC040, -3)]),
    ("cvt.rn.bf16x2.f32 %d, %a, %b;", "f32 f32", "b32", [(1, -3, 0x3F80C040)]),
    ("cvt.rn.f16x2.f32 %d, %a, %b;", "f32 f32", "b32", [(1, 2, 0x3C004000)]),
    (
        "cvt.rz.f16x2.f32 %d, %a, %b;",
        "f32 f32",
        "b32",
        [(1 + 2**-10 + 2**-11 + 2**-12, -(1 + 2**-11 + 2**-12), 0x3C01BC00), (70000, INF, 0x7BFF7C00)],
    ),
    ("cvt.rz.f16.f32 %d, %a;", "f32", "b16", [(1 + 2**-11 + 2**-12, 0x3C00), (-70000, 0xFBFF)]),
    ("cvt.rna.tf32.f32 %d, %a;", "f32", "b32", [(1 + 2**-11, 0x3F802000), (INF, 0x7F800000)]),
    ("cvt.sat.f32.f32 %d, %a;", "f32", "f32", [(1.5, 1), (-2, 0), (NAN, 0), (0.25, 0.25)]),
    (
        "cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;",
        "f32 f32",
        "b16",
        [(1, -2, 0x38C0), (1000, 0, 0x7E00), (NAN, 2**-9, 0x7F01), (17, 19, 0x585A)],
    ),
    ("cvt.rn.satfinite.e5m2x2.f32 %d, %a, %b;", "f32 f32", "b16", [(1, -2, 0x3CC0), (1e6, 0, 0x7B00)]),
    ("cvt.rn.satfinite.e4m3x2.f16x2 %d, %a;", "b32", "b16", [(0x3C00C000, 0x38C0)]),
    ("cvt.rn.f16x2.e4m3x2 %d, %a;", "b16", "b32", [(0x38C0, 0x3C00C000), (0x017F, 0x1800_7E00)]),
    ("cvt.rn.f16x2.e5m2x2 %d, %a;", "b16", "b32", [(0x3CC0, 0x3C00C000)]),
]
ROUNDED = {"ex2", "lg2", "sin", "cos", "tanh"}  # numpy's own last bit may differ


def opcode(text: str) -> str:
    return re.findall(r"([a-z]\w*)[.\w:]* %d", text)[-1]


def check(case, got: np.ndarray, want: np.ndarray) -> None:
    text = case[0]
    if want.dtype.kind == "f":
        tolerance = 1e-6 if opcode(text) in ROUNDED else 0
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=0, err_msg=text)
        np.testing.assert_array_equal(np.signbit(got)[want == 0], np.signbit(want)[want == 0], err_msg=text)
    else:
        np.testing.assert_array_equal(got, want, err_msg=text)


def expected(case) -> np.ndarray:
    *_, result, rows = case
    values = [row[-1] for row in rows]
    if result == "pred":
        return np.array(values, bool)
    return bits(values, result).view(TYPES[result])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_lanes_compute(case):
    text, types, result, rows = case
    inputs = [[row[j] for row in rows] for j in range(len(types.split()))]
    got = evaluate(text, types.split(), result, inputs)
    check(case, got[: len(rows)], expected(case))


@pytest.mark.parametrize("case", [c for c in CASES if "laneid" not in c[0]], ids=lambda case: case[0])
def test_threads_that_agree_compute_the_same(case):
    text, types, result, rows = case
    for row, want in zip(rows, expected(case), strict=True):
        got = evaluate(text, types.split(), result, [[value] for value in row[:-1]], mode="uniform")
        check(case, got, np.full(32, want))


@pytest.mark.parametrize("case", [c for c in CASES if c[0][0] != "{"], ids=lambda case: case[0])
def test_a_guard_keeps_the_old_value_where_it_does_not_hold(case):
    text, types, result, rows = case
    twice = [row for row in rows for _ in range(2)] if "laneid" not in text else rows
    inputs = [[row[j] for row in twice] for j in range(len(types.split()))]
    got = evaluate(text, types.split(), result, inputs, mode="odd")[: len(twice)]
    check((text, types, result, twice[1::2]), got[1::2], expected((text, types, result, twice[1::2])))
    assert not got[::2].any()


TESTED_ELSEWHERE = {  # tests/test_ptx_machine.py, test_ptx_wgmma.py
    *("ld", "ldu", "st", "atom", "red", "cp", "bar", "barrier", "trap", "mma", "ldmatrix", "stmatrix"),
    "wgmma",
    *("shfl", "vote", "activemask", "redux"),
    *("membar", "fence", "griddepcontrol", "nanosleep", "prefetch", "discard", "applypriority"),
}


def test_every_opcode_has_a_test():
    tested = {name for text, *_ in CASES for name in re.findall(r"(?:^|; |\{ )([a-z]\w*)\.", text)}
    assert TRANSLATORS.keys() - TESTED_ELSEWHERE <= tested | {"createpolicy"}
