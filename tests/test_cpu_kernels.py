# SPDX-License-Identifier: Apache-2.0
"""The vector kernels on every instruction set of this processor: errors in ULP, noise to the bit."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from specdec_kernels._random import Purpose, race_keys
from specdec_kernels.cpu import _native

ISAS = ("baseline", "avx2", "avx512", "neon")
MOST_EXP2_ULP = 1.25  # 1.0 where there is a fused multiply-add
MOST_LOG_ULP = 1.0


def isa_or_skip(isa):
    try:
        _native.exp2(isa, 0, 0, 0)
    except ValueError as error:
        pytest.skip(str(error))


def exp2(isa, x):
    x = np.ascontiguousarray(x, dtype=np.float32)
    padded = np.zeros(-(-len(x) // 128) * 128, np.float32)
    padded[: len(x)] = x
    out = np.empty_like(padded)
    _native.exp2(isa, padded.ctypes.data, out.ctypes.data, len(padded))
    return out[: len(x)]


@pytest.mark.parametrize("isa", ISAS)
def test_exp2_error(isa):
    """At most 1.25 ULP from 0 down to the smallest normal result, and 0 or a denormal below it."""
    isa_or_skip(isa)
    bits = np.arange(0x80000000, 0xC2FC0000, 251, dtype=np.uint32)  # -0.0 ... -126
    x = bits.view(np.float32)
    got, exact = exp2(isa, x).astype(np.float64), np.exp2(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert (np.abs(got - exact) / ulp).max() <= MOST_EXP2_ULP
    low = exp2(isa, np.linspace(-127, -1e4, 999))
    assert ((low >= 0) & (low < 1.2e-38)).all()
    assert exp2(isa, [-np.inf, np.nan, -3e38]).tolist() == [0, 0, 0]
    assert exp2(isa, [0.0, -0.0]).tolist() == [1, 1]


def test_log_error():
    """Race keys, -log1p(-v): at most one float64 ULP, at both ends and between."""
    words = [0, 1, 2, 3, 255, 2**16, 2**31, 2**31 + 1, 2**32 - 300, 2**32 - 1]
    words += np.random.default_rng(0).integers(0, 2**32, 3000).tolist()
    worst = 0.0
    with mpmath.workdps(40):
        for word in words:
            v = min((mpmath.mpf(word) + mpmath.mpf(0.5)) * mpmath.mpf(2) ** -32, 1 - mpmath.mpf(2) ** -24)
            exact = -mpmath.log1p(-v)
            worst = max(worst, float(abs(_native.exponential(word) - exact) / np.spacing(float(exact))))
    assert worst <= MOST_LOG_ULP


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("purpose", [Purpose.NEXT, Purpose.RESIDUAL])
def test_races_use_the_specified_noise(isa, purpose):
    isa_or_skip(isa)
    g = torch.Generator().manual_seed(int(purpose))
    for trial in range(200):
        seed, position = (int(torch.randint(-(2**62), 2**62, (1,), generator=g)) for _ in range(2))
        x = torch.randn(256, generator=g) * 3
        x[torch.rand(256, generator=g) < 0.3] = -float("inf")
        top = float(x.max())
        total, score, token = _native.race(isa, x.data_ptr(), 256, top, seed, position, int(purpose))
        weights = (x.double() - top).exp()
        scores = weights / race_keys(seed, position, purpose, 256)
        assert token == int(scores.argmax()), trial
        assert score == pytest.approx(float(scores.max()), rel=1e-6)
        assert total == pytest.approx(float(weights.sum()), rel=1e-6)


def test_stubs_name_the_fields_of_the_core():
    """And its enums; structs and functions take all of their fields by name, and no others."""
    stubs = ast.parse((Path(_native.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in stubs.body if isinstance(node, ast.ClassDef)}
    assert set(classes) == {name for name, value in vars(_native).items() if isinstance(value, type)}
    for name, node in classes.items():
        kind = getattr(_native, name)
        if hasattr(kind, "fields"):
            init = next(one for one in node.body if isinstance(one, ast.FunctionDef))
            assert tuple(one.arg for one in init.args.kwonlyargs) == kind.fields
            with pytest.raises(TypeError, match=f"{name} needs {kind.fields[0]}"):
                kind()
        elif hasattr(kind, "__members__"):
            assert {one.targets[0].id for one in node.body} == set(kind.__members__)
        else:
            named = {one.name for one in node.body if isinstance(one, ast.FunctionDef)} - {"__init__"}
            assert named == {name for name in vars(kind) if not name.startswith("_")}
    with pytest.raises(TypeError, match="Paths was given an unknown field: rowz"):
        _native.Paths(nodes=0, width=0, cu_nodes=0, rows=0, requests=0, rowz=0)
    functions = {node.name: node for node in stubs.body if isinstance(node, ast.FunctionDef)}
    assert set(functions) == {name for name, value in vars(_native).items() if callable(value)} - set(classes)
    by_name = [name for name, node in functions.items() if node.args.posonlyargs]
    assert len(by_name) == 17
    for name in by_name:
        threads, *fields = inspect.signature(getattr(_native, name)).parameters
        assert [one.arg for one in functions[name].args.posonlyargs] == [threads]
        assert [one.arg for one in functions[name].args.kwonlyargs] == fields
        with pytest.raises(TypeError, match=f"{name} needs {fields[0]}"):
            getattr(_native, name)(1)


def test_fields_of_the_core_have_types():
    float32 = _native.DType.float32
    rows = dict(data=0, dtype=float32, row_stride=4, head_stride=2)
    assert _native.HeadRows(**rows) is not None
    assert _native.HeadRows(**dict(reversed(rows.items()))) is not None  # in any order
    for name, value in [
        ("data", -1),
        ("data", 0.0),
        ("data", None),
        ("dtype", torch.float32),
        ("dtype", 2**31),
        ("row_stride", "4"),
        ("row_stride", 2**63),
        ("head_stride", 2.0),
    ]:
        message = f"HeadRows cannot take {value!r} as {name}"
        with pytest.raises(TypeError, match=re.escape(message)):
            _native.HeadRows(**(rows | {name: value}))
    law = dict(temperature=(1.0, 0), top_k=(0, 0), top_p=(1.0, 0), min_p=(0.0, 0), min_p_last=False)
    assert _native.Sampling(**law) is not None
    for wrong in ({"temperature": 1.0}, {"top_p": (1.0, 0.0)}, {"min_p": (0.0, 0, 0)}, {"min_p_last": 0.0}):
        with pytest.raises(TypeError, match="Sampling cannot take"):
            _native.Sampling(**(law | wrong))
    with pytest.raises(TypeError, match="HeadRows takes its fields by name"):
        _native.HeadRows(0, 0)
    draft = dict(frequent=False, num_draft=0, out=0)
    with pytest.raises(TypeError, match="ngram_draft cannot take .* as search"):
        _native.ngram_draft(1, search=_native.HeadRows(**rows), **draft)
    with pytest.raises(TypeError, match="ngram_draft takes the number of threads, and its fields by name"):
        _native.ngram_draft(search=None, **draft)
    with pytest.raises(ValueError, match="specdec_ngram_draft: search must not be null"):
        _native.ngram_draft(1, search=None, **draft)
