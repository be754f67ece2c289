# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled for GPUs that are not here: registers, spills, shared memory, occupancy, instructions."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import ptx_emulator
from ptx_emulator.driver import EmulatorDriver


@dataclass(frozen=True)
class Processor:
    """A target, and what one of its multiprocessors (compute units) holds."""

    name: str
    target: GPUTarget
    warps: int  # resident, of 32 threads; wavefronts of 64 on gfx942
    blocks: int
    shared: int  # bytes
    reserved: int = 1 << 10  # bytes of it that each block takes besides its own


# CUDA C++ Programming Guide, table of technical specifications; AMD CDNA 3 instruction set guide.
PROCESSORS = (
    Processor("sm_80", GPUTarget("cuda", 80, 32), 64, 32, 164 << 10),
    Processor("sm_90", GPUTarget("cuda", 90, 32), 64, 32, 228 << 10),
    Processor("sm_100", GPUTarget("cuda", 100, 32), 64, 32, 228 << 10),
    Processor("sm_120", GPUTarget("cuda", 120, 32), 48, 24, 100 << 10),
    Processor("gfx942", GPUTarget("hip", "gfx942", 64), 32, 32, 64 << 10, 0),
)
REGISTERS = 65536  # of a multiprocessor of NVIDIA's, dealt out to warps by 256
VECTOR_REGISTERS = 512  # of a lane of a SIMD of gfx942, dealt out to wavefronts by 8; 4 SIMDs of 8 wavefronts

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")  # that launches give

DOTS = re.compile(r"tt\.dot\b.*tensor<\w*x(?:f16|bf16|f8\w*)>")  # products in a type that tensor cores take
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma)")
PTX_LOADS = re.compile(r"\bld\.global(?:\.[a-z]\w*:*\w*)*?(?:\.v(\d))?\.[bfsu](\d+)\s")
PTX_COPIES = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b.*?, (0x\w+|\d+)")
HIP_LOADS = re.compile(r"\b(?:global|buffer|flat)_load_(?:dword(?:x(\d))?|[us]?(byte)|[us]?(short))\b")


@dataclass(frozen=True)
class Kernel:
    """A kernel in one configuration, as it would be launched on a processor."""

    processor: Processor
    source: ASTSource
    options: dict[str, int | bool]  # of the compiler, by the names that Triton has for them

    @property
    def warps(self) -> int:
        return self.options["num_warps"]

    @property
    def name(self) -> str:
        return self.source.fn.__name__

    @property
    def module(self) -> str:
        return self.source.fn.__module__.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Build:
    """A kernel compiled."""

    registers: int  # of a thread
    spills: int  # bytes; registers on gfx942
    shared: int  # bytes of a block
    occupancy: float  # share of the warps that a multiprocessor can hold
    dots: bool  # multiplies matrices in a type that tensor cores take
    tensor_cores: bool  # has instructions of theirs
    widest_load: int  # bytes that a thread gets from global memory in one access, 0 = none
    binary: int  # bytes of the file that is loaded


class _Absent(EmulatorDriver):
    """Says that there is a GPU of some target. Nothing is launched."""

    def __init__(self, target: GPUTarget):
        super().__init__(target.arch)
        self.target = target
        # Not the emulator's device: nothing counts as compiled because it was launched there.
        self.get_current_device = lambda: f"absent {target.backend} {target.arch}"

    def get_current_target(self) -> GPUTarget:
        return self.target


def kernels(processor: Processor, calls: Iterable[Callable[[], object]]) -> list[Kernel]:
    """What the calls would launch on a processor, without compiling it."""
    found: dict[tuple, Kernel] = {}

    def keep(*, fn, compile, **_) -> bool:
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        every = json.loads(compile["specialization_data"])["options"]
        options = {name: every[name] for name in OPTIONS if name in every}
        found.setdefault((fn.name, source.hash(), *options.items()), Kernel(processor, source, options))
        return True  # and go on without it

    with ptx_emulator.active():  # puts the driver back at the end
        triton.runtime.driver.set_active(_Absent(processor.target))
        before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, keep
        try:
            for call in calls:
                call()
        finally:
            knobs.runtime.jit_cache_hook = before
    return list(found.values())


def build_all(some: list[Kernel]) -> list[Build]:
    """In as many processes as there are processors here."""
    global _building
    _building = some
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.map(_build_at, range(len(some)), chunksize=1)


def compile_seconds(some: list[Kernel]) -> list[float]:
    """CPU seconds that each takes to compile, ptxas included, one after the other and none from the cache."""
    context = multiprocessing.get_context("fork")
    global _building
    _building = some
    with context.Pool(1, maxtasksperchild=1) as pool:  # a process for each, which has compiled nothing
        return pool.map(_time_at, range(len(some)), chunksize=1)


def _time_at(place: int) -> float:
    kernel = _building[place]
    with tempfile.TemporaryDirectory() as cache, knobs.cache.scope(), knobs.runtime.scope():
        knobs.cache.dir = cache
        knobs.runtime.add_stages_inspection_hook = None  # of the emulator, which does without ptxas
        triton.compile(kernel.source, target=kernel.processor.target, options=kernel.options)
    spent = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


_building: list[Kernel] = []  # sources do not travel between processes, but are there after a fork


def _build_at(place: int) -> Build:
    return build(_building[place])


def build(kernel: Kernel) -> Build:
    processor = kernel.processor
    compiled = triton.compile(kernel.source, target=processor.target, options=kernel.options)
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    if processor.target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count: +(\d+)", text)[1])
        spills = int(re.search(r"\.vgpr_spill_count: +(\d+)", text)[1])
        resident = 4 * min(8, VECTOR_REGISTERS // _round_up(max(registers, 1), 8))
        widths = [
            1 if byte else 2 if short else 4 * int(x or 1) for x, byte, short in HIP_LOADS.findall(text)
        ]
    else:
        text = compiled.asm["ptx"]
        used = ptx_emulator.resources(compiled)
        registers, spills = used["registers"], used["spill_stores"] + used["spill_loads"]
        resident = REGISTERS // _round_up(max(registers, 1) * 32, 256)
        widths = [int(vector or 1) * int(bits) // 8 for vector, bits in PTX_LOADS.findall(text)]
        widths += [int(size, 0) for size in PTX_COPIES.findall(text)]
    blocks = min(processor.blocks, min(resident, processor.warps) // warps)
    if shared + processor.reserved:
        blocks = min(blocks, processor.shared // (shared + processor.reserved))
    return Build(
        registers=registers,
        spills=spills,
        shared=shared,
        occupancy=blocks * warps / processor.warps,
        dots=bool(DOTS.search(compiled.asm["ttir"])),
        tensor_cores=bool(TENSOR_CORES.search(text)),
        widest_load=max(widths, default=0),
        binary=len(compiled.asm["hsaco" if processor.target.backend == "hip" else "cubin"]),
    )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
