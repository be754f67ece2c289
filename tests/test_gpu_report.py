# SPDX-License-Identifier: Apache-2.0
"""The GPU report: what it says of known kernels; that ours keep to the rules and to the counts aimed at."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re

import pytest
import torch
from each import BACKENDS, DEVICE

if "triton" not in BACKENDS or DEVICE != "cpu":
    pytest.skip("needs Triton, whose driver it takes over", allow_module_level=True)

import triton
import triton.language as tl

import specdec_kernels.triton as kernels
from bench import runner
from bench.gpu import report, targets, variants
from bench.gpu.cases import SUITE

pytestmark = pytest.mark.slow
OPERATIONS = (
    variants.sample,
    variants.edits,
    variants.children,
    variants.ngrams,
    variants.budgets,
    variants.links,
    variants.verify,
    variants.tree_attention,
    variants.commit_kv,
    variants.states,
)
SM_80, SM_90, *_, GFX942 = targets.PROCESSORS
FENCED_BARRIER = re.compile(
    r"""fence syncscope\("workgroup"\) release(?!.*!mmra).*\n"""
    r""".*call void @llvm\.amdgcn\.s\.barrier\(\).*\n"""
    r""".*fence syncscope\("workgroup"\) acquire(?!.*!mmra)"""
)


@triton.jit
def _multiply_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + offs, tl.dot(tl.load(a_ptr + offs), tl.load(b_ptr + offs)))


def multiply(size, dtype):
    matrix, out = torch.zeros(size, size, dtype=dtype), torch.zeros(size, size)
    return lambda: _multiply_kernel[(1,)](matrix, matrix, out, SIZE=size)


def compiled(call, processor):
    (kernel,) = targets.kernels(processor, [call])
    return kernel, targets.build(kernel)


@pytest.mark.parametrize("processor", targets.PROCESSORS, ids=lambda processor: processor.name)
def test_a_product_of_matrices_is_seen_for_what_it_is(processor):
    kernel, build = compiled(multiply(64, torch.bfloat16), processor)
    assert (kernel.name, kernel.warps, build.spills) == ("_multiply_kernel", 4, 0)
    assert build.dots and build.tensor_cores and build.widest_load == 16
    assert 0 < build.registers <= 255 and 0 < build.occupancy <= 1 and build.shared > 0
    assert not list(report.broken_rules([(kernel, build)]))


@triton.jit
def _crowd_kernel(a_ptr, SIZE: tl.constexpr):
    """A warp that cannot forget what it has read."""
    a_ptr += tl.arange(0, SIZE)
    a = tl.load(a_ptr)
    tl.store(a_ptr, a / tl.sum(a))


def test_spills_are_seen():
    a = torch.zeros(16384)
    _, build = compiled(lambda: _crowd_kernel[(1,)](a, SIZE=16384, num_warps=1), SM_80)
    assert build.spills and not build.dots


def test_what_must_not_be_is_refused():
    kernel, build = compiled(multiply(64, torch.bfloat16), SM_80)
    for change, text in (
        ({"spills": 4}, "_multiply_kernel on sm_80: spills 4"),
        ({"registers": 169}, "_multiply_kernel on sm_80: 169 registers"),
        ({"shared": 163 * 1024 + 1}, "_multiply_kernel on sm_80: 166913 bytes of shared memory"),
        ({"tensor_cores": False}, "_multiply_kernel on sm_80: no tensor-core instruction"),
    ):
        assert list(report.broken_rules([(kernel, dataclasses.replace(build, **change))])) == [text]


def test_occupancy_is_the_least_of_what_warps_registers_and_memory_allow():
    kernel, build = compiled(multiply(16, torch.float32), SM_80)
    assert build.occupancy == 1.0
    kernel, build = compiled(multiply(128, torch.bfloat16), SM_80)
    blocks = min(SM_80.shared // (build.shared + 1024), 65536 // (128 * -(-build.registers // 8) * 8))
    assert build.occupancy == blocks * 4 / 64 < 1


def test_compilation_is_timed_in_the_largest_form():
    some = [compiled(multiply(size, torch.float32), SM_90) for size in (16, 64)]
    some = [(kernel, dataclasses.replace(build, binary=n)) for n, (kernel, build) in enumerate(some)]
    small, large = (kernel for kernel, _ in some)
    assert report.largest_forms(some) == report.largest_forms(some[::-1]) == [large]
    short, long = targets.compile_seconds([small, large])
    assert 0 < short < long  # though both were compiled before
    assert list(report.slow_compilations({"short": 6.0, "long": 6.1})) == [
        "long on sm_90: 6.1 CPU s to compile, goal 6"
    ]


def test_every_kernel_is_in_the_report():
    there = set()
    for _, name, _ in pkgutil.iter_modules(kernels.__path__):
        for value in vars(importlib.import_module(f"specdec_kernels.triton.{name}")).values():
            if isinstance(value, triton.JITFunction) and value.__name__.endswith("_kernel"):
                there.add(value.__name__)
    assert there == {kernel.name for kernel in targets.kernels(SM_80, variants.calls())}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_kernels_neither_spill_nor_crowd_the_registers(operation):
    """Of every kernel its first form for gfx942, and for sm_90 its last of every number of warps, which has
    most options. `make gpu-report` compiles all forms, for all targets; the test below, the richest ones."""
    first = {kernel.name: kernel for kernel in reversed(targets.kernels(GFX942, operation()))}
    some = [*first.values(), *last_forms(targets.kernels(SM_90, operation()))]
    compiled = list(zip(some, targets.build_all(some), strict=True))
    assert len(compiled) >= 3 and not list(report.broken_rules(compiled))


def last_forms(kernels):
    return list({(kernel.name, kernel.warps): kernel for kernel in kernels}.values())


def test_the_richest_forms_neither_spill_nor_crowd_the_registers():
    """Of every kernel for sm_90 those that `make gpu-report` found nearest to spilling, or its last form."""
    forms = targets.kernels(SM_90, variants.calls())
    some = report.richest_of(forms)
    near = {kernel.name for kernel in some}
    some += {kernel.name: kernel for kernel in forms if kernel.name not in near}.values()
    compiled = list(zip(some, targets.build_all(some), strict=True))
    assert {kernel.name for kernel, _ in compiled} == {kernel.name for kernel in forms}
    assert not list(report.broken_rules(compiled))


def test_a_form_is_rich_where_few_registers_are_left_or_some_spill():
    kernel, build = compiled(multiply(64, torch.bfloat16), SM_80)
    some = [(kernel, dataclasses.replace(build, registers=n, spills=s)) for n, s in ((246, 0), (100, 0))]
    assert report.richest(some) == []
    some += [(kernel, dataclasses.replace(build, registers=n, spills=s)) for n, s in ((247, 0), (255, 0))]
    assert report.richest(some) == [("sm_80", "_multiply_kernel", 4, 3)]
    some += [(kernel, dataclasses.replace(build, registers=128, spills=s)) for s in (4, 8)]
    assert report.richest(some) == [("sm_80", "_multiply_kernel", 4, 5)]


def test_what_a_walk_writes_is_seen_by_its_other_wavefronts():
    """On gfx942 `tl.debug_barrier` is `s_barrier` between fences of all memory. No wait for stores is needed:
    wavefronts of a workgroup share an L1 cache that keeps their accesses in order, where the workgroup is not
    split over compute units."""
    found = targets.kernels(GFX942, variants.verify())
    walk = next(
        k for k in found if k.name == "verify_walk_kernel" and "traversal" in k.source.constants.values()
    )
    code = triton.compile(walk.source, target=GFX942.target, options=walk.options).asm
    assert ".amdhsa_tg_split 0" in code["amdgcn"]
    # Two around the reading of a node on the way. Fences of shared memory alone are annotated.
    assert len(FENCED_BARRIER.findall(code["llir"])) >= 2


@pytest.mark.parametrize("case", SUITE.cases, ids=lambda case: case.name)
def test_counts_aimed_at_are_met(case):
    goals = runner.measure(SUITE, case, threads=())["goals"]
    assert goals and all(goal["state"] == "ok" for goal in goals), goals
