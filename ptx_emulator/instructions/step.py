# SPDX-License-Identifier: Apache-2.0
"""A step: a function of numpy values, the operands it reads and the registers it fills.

Functions get a value per source, of the dtype of its type: an array with an element per thread, or a scalar
where all threads agree, and return the same, one value or a tuple of values, of the dtypes of `results`.

An effect is a function that does more than compute. It gets the group of threads and the lanes that take part
(None: all of them; else their places in the group, ascending) before the sources, which are still whole, and
returns values for those lanes alone. It is not called where no lane takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import PTXError
from ..parse import Instruction
from ..values import TYPES

ADDRESS = "address"  # the type of a source like [%rd1+16]: int64
Operands = list[tuple[str, str]]  # operand, type
TRANSLATORS: dict[str, Callable[[Instruction], Step]] = {}


@dataclass
class Step:
    function: Callable
    sources: Operands
    results: Operands
    effect: bool = False


def instruction(*opcodes: str) -> Callable:
    """Registers a translator, which turns instructions of these opcodes into steps."""

    def register(translator: Callable[[Instruction], Step]) -> Callable[[Instruction], Step]:
        TRANSLATORS.update(dict.fromkeys(opcodes, translator))
        return translator

    return register


def translate(ins: Instruction) -> Step:
    """
    Raises:
        PTXError: names the instruction, if it is not known.
    """
    if ins.opcode not in TRANSLATORS:
        raise PTXError(f"unknown instruction {ins.name}: {ins.text}")
    try:
        step = TRANSLATORS[ins.opcode](ins)
    except (KeyError, IndexError, ValueError, StopIteration, PTXError) as error:
        raise PTXError(f"unknown form of {ins.opcode}: {ins.text} ({error})") from error
    for _, type_ in (*step.sources, *step.results):
        if type_ not in TYPES and type_ != ADDRESS:
            raise PTXError(f"unknown type {type_!r}: {ins.text}")
    return step


def compute(ins: Instruction, function: Callable, sources: tuple[str, ...] = (), result: str = "") -> Step:
    """The usual step: results first, sources after it, all of the instruction's type unless told."""
    operands = ins.operands[1:]
    types = sources or (ins.type,) * len(operands)
    return Step(function, list(zip(operands, types, strict=True)), [(ins.operands[0], result or ins.type)])


def select(condition: np.ndarray, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """np.where that keeps scalars scalar."""
    if condition.ndim == 0:
        return yes if condition else no
    return np.where(condition, yes, no)
