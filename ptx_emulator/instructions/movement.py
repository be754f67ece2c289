# SPDX-License-Identifier: Apache-2.0
"""Moving values: mov, cvta, selp, ld.param and its kind."""

from __future__ import annotations

import numpy as np

from ..asynchronous import InFlight
from ..errors import PTXError
from ..parse import Instruction, elements
from ..values import TYPES, raw
from .step import Step, compute, instruction, select


def same(value: np.ndarray) -> np.ndarray:
    if isinstance(value, InFlight):
        value.used()
    return value


@instruction("mov")
def mov(ins: Instruction) -> Step:
    to, source = elements(ins.operands[0]), elements(ins.operands[1])
    if len(to) == len(source) == 1:
        return compute(ins, same)
    whole = raw(ins.type)
    bits = 8 * whole.itemsize // max(len(to), len(source))
    part = f"b{bits}"

    def unpack(value: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple((value >> whole.type(j * bits)).astype(TYPES[part]) for j in range(len(to)))

    def pack(*values: np.ndarray) -> np.ndarray:
        word = values[0].astype(whole)
        for j, value in enumerate(values[1:], 1):
            word = word | (value.astype(whole) << whole.type(j * bits))
        return word

    if len(to) > 1:
        return Step(unpack, [(ins.operands[1], f"b{8 * whole.itemsize}")], [(name, part) for name in to])
    return Step(pack, [(name, part) for name in source], [(to[0], f"b{8 * whole.itemsize}")])


@instruction("cvta")
def cvta(ins: Instruction) -> Step:
    if "global" not in ins.modifiers:
        raise PTXError("generic addresses of other spaces")
    return compute(ins, same)


@instruction("selp")
def selp(ins: Instruction) -> Step:
    return compute(ins, lambda yes, no, p: select(p, same(yes), same(no)), (ins.type, ins.type, "pred"))


@instruction("createpolicy")
def createpolicy(ins: Instruction) -> Step:
    """Cache policies are not modelled; the register gets a zero."""
    return Step(lambda: np.uint64(0), [], [(ins.operands[0], "b64")])


NOTHING = "membar griddepcontrol nanosleep prefetch discard applypriority bar barrier".split()


@instruction(*NOTHING)
def nothing(ins: Instruction) -> Step:
    """Memory is sequentially consistent here, there is no cache, and the lanes of a warp move together
    (`bar.warp`; barriers of a CTA end a block)."""
    return Step(lambda: (), [], [])


@instruction("trap")
def trap(ins: Instruction) -> Step:
    def stop(group: object, lanes: object) -> None:
        raise PTXError("trap")

    return Step(stop, [], [], effect=True)
