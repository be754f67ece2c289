# SPDX-License-Identifier: Apache-2.0
"""NamedTuples that one kernel or program saves in scratch and another loads, field by field.

    save(words, law)
    law = Law(*load(words, like))                         # `like`: a record with fields of the same types
    results = Split(*load_shared(words, like, mask))      # of many programs, which may still be running

`words` points to the first of as many elements as the record has fields, each as wide as the widest field.
Nested records are saved on their own, and what is loaded is a plain tuple, which the caller names: Triton
before 3.6 forgets the names in nested tuples, and takes functions that differ in names alone for the same.
"""

from __future__ import annotations

import triton
import triton.language as tl


def whole_sectors(words: int) -> int:
    """As many float64 words as whole sectors of memory have, where some are needed."""
    return -(-words // 4) * 4


@triton.jit
def save(words, record):
    for i in tl.static_range(len(record)):
        tl.store(_field(words, i, record[i].dtype), record[i])


@triton.jit
def load(words, like):
    values = ()
    for i in tl.static_range(len(like)):
        values = values + (tl.load(_field(words, i, like[i].dtype)),)
    return values


@triton.jit
def load_shared(words, like, mask):
    """Of a tensor of pointers. Where the mask is not set, the fields are those of `like`. The first-level
    cache is passed by: it does not see what other programs of the same launch write."""
    values = ()
    for i in tl.static_range(len(like)):
        field = _field(words, i, like[i].dtype)
        values = values + (tl.load(field, mask=mask, other=like[i], cache_modifier=".cg"),)
    return values


@triton.jit
def _field(words, i: tl.constexpr, DTYPE: tl.constexpr):
    return (words + i).to(tl.pointer_type(DTYPE))
