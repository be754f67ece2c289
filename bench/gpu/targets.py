"""Kernels compiled for GPUs that are not here: registers, spills, shared memory, occupancy, instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget

import ptx_emulator


@dataclass(frozen=True)
class Processor:
    """A target, and what one of its multiprocessors (compute units) holds."""

    name: str
    target: GPUTarget
    warps: int  # resident, of 32 threads (wavefronts of 64 on gfx942)
    blocks: int
    shared: int  # bytes
    reserved: int  # bytes of it that each block takes besides its own


# CUDA C++ Programming Guide, table of technical specifications; AMD CDNA 3 ISA guide.
PROCESSORS = (
    Processor("sm_80", GPUTarget("cuda", 80, 32), 64, 32, 164 << 10, 1 << 10),
    Processor("sm_90", GPUTarget("cuda", 90, 32), 64, 32, 228 << 10, 1 << 10),
    Processor("sm_100", GPUTarget("cuda", 100, 32), 64, 32, 228 << 10, 1 << 10),
    Processor("sm_120", GPUTarget("cuda", 120, 32), 48, 24, 100 << 10, 1 << 10),
    Processor("gfx942", GPUTarget("hip", "gfx942", 64), 32, 32, 64 << 10, 0),
)
REGISTERS = 65536  # of a multiprocessor of NVIDIA's, dealt out to warps by 256
VECTOR_REGISTERS = (
    512  # of a lane of a SIMD of gfx942, dealt out to wavefronts by 8; 4 SIMDs, 8 wavefronts each
)

TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma)")
LOADS = re.compile(
    r"\bld\.global(?:\.\w+)*?(?:\.v(\d))?\.[a-z](\d+)\b|\bcp\.async\.\w+\.shared\.global\S* .*?, (0x\w+|\d+)"
)
HIP_LOADS = re.compile(r"\b(?:global|buffer|flat)_load_(dword(?:x\d)?|[us]?byte|[us]?short)")


@dataclass(frozen=True)
class Build:
    """A kernel compiled for a processor."""

    registers: int
    spills: int  # bytes (registers on gfx942)
    shared: int  # bytes of a block
    occupancy: float  # share of the warps that a multiprocessor can hold
    tensor_cores: bool
    widest_load: int  # bytes of a thread in one access of global memory, 0 = none


def build(launch: ptx_emulator.Launch, processor: Processor) -> Build:
    """The kernel of a launch as it would be compiled for a processor, in the same configuration."""
    metadata = launch.metadata
    options = {"num_warps": metadata.num_warps, "num_stages": metadata.num_stages}
    kernel = triton.compile(launch.source, target=processor.target, options=options)
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    if processor.target.backend == "hip":
        text = kernel.asm["amdgcn"]
        registers, spills = (
            int(re.search(rf"\.vgpr_{what}: +(\d+)", text)[1]) for what in ("count", "spill_count")
        )
        per_simd = min(8, VECTOR_REGISTERS // max(_round_up(registers, 8), 1))
        resident = 4 * per_simd
        widths = [_hip_bytes(width) for width in HIP_LOADS.findall(text)]
    else:
        text = kernel.asm["ptx"]
        used = ptx_emulator.resources(kernel)
        registers, spills = used["registers"], used["spill_stores"] + used["spill_loads"]
        resident = REGISTERS // _round_up(max(registers, 1) * 32, 256)
        widths = [_ptx_bytes(match) for match in LOADS.finditer(text)]
    blocks = min(processor.blocks, min(resident, processor.warps) // warps)
    if shared + processor.reserved:
        blocks = min(blocks, processor.shared // (shared + processor.reserved))
    return Build(
        registers=registers,
        spills=spills,
        shared=shared,
        occupancy=blocks * warps / processor.warps,
        tensor_cores=bool(TENSOR_CORES.search(text)),
        widest_load=max(widths, default=0),
    )


def uses_dot(launch: ptx_emulator.Launch) -> bool:
    """Whether the kernel multiplies matrices in a type that tensor cores take."""
    return bool(re.search(r"tt\.dot\b.*tensor<\w*x(?:f16|bf16|f8\w*)>", _ttir(launch)))


def _ttir(launch: ptx_emulator.Launch) -> str:
    metadata = launch.metadata
    options = {"num_warps": metadata.num_warps, "num_stages": metadata.num_stages}
    return triton.compile(launch.source, target=PROCESSORS[0].target, options=options).asm["ttir"]


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _ptx_bytes(match: re.Match) -> int:
    vector, bits, copied = match.groups()
    return int(copied, 0) if copied else int(vector or 1) * int(bits) // 8


def _hip_bytes(width: str) -> int:
    if width.startswith("dword"):
        return 4 * int(width[6:] or 1)
    return 1 if width.endswith("byte") else 2
