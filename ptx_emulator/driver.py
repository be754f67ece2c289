# SPDX-License-Identifier: Apache-2.0
"""A Triton driver without a GPU: `kernel[grid](cpu_tensors, ...)` compiles as for NVIDIA, and the emulator
runs the PTX in the tensors' own memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver

from . import program
from .counts import Launch, counting
from .errors import PTXError
from .machine import Machine
from .memory import GlobalMemory, Region
from .tensors import LiveTensors, region


@dataclass(frozen=True)
class Options:
    """How launches run."""

    races: bool = False  # check shared memory for races
    bounds: str = "view"  # a kernel may touch the extent of a tensor's view; "storage": all of its storage
    reach: str = "mapped"  # addresses found in memory lead to mapped tensors; "live": to any tensor alive
    compile_only: bool = False  # record launches, but run nothing
    batch_threads: int = 16384  # CTAs run together up to so many threads
    max_blocks: int = 1_000_000  # a batch of CTAs that executes more basic blocks is taken for endless

    def __post_init__(self):
        for name, values in (("bounds", ("view", "storage")), ("reach", ("mapped", "live"))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")


options = Options()
_mapped: list[tuple[torch.Tensor, ...]] = []
_live = LiveTensors()
_latest: dict[str, str] = {}  # the PTX of the kernel that is being loaded


@contextlib.contextmanager
def mapped(*tensors: torch.Tensor) -> Iterator[None]:
    """Inside, kernels may reach these tensors through addresses that they find in memory."""
    _mapped.append(tensors)
    try:
        yield
    finally:
        _mapped[:] = [other for other in _mapped if other is not tensors]


def run(ptx: str, grid: tuple[int, int, int], *arguments: object, shared: int = 0) -> Launch:
    """Launch a kernel given as PTX text.

    Args:
        arguments: of the leading parameters: tensors and numbers. The others are 0.
        shared: bytes of shared memory of a CTA beyond those that the text declares.
    """
    launch = Launch(*_facts(ptx), grid, shared, ptx)
    _run(launch, [(f"argument {place}", value) for place, value in enumerate(arguments)])
    return launch


def _facts(ptx: str) -> tuple[str, int]:
    kernel = program.load(ptx).kernel
    return kernel.name, kernel.threads // 32


def _run(launch: Launch, arguments: list[tuple[str, object]]) -> None:
    """Record a launch and run it. arguments: names for messages, and tensors or numbers."""
    for launches in counting:
        launches.append(launch)
    if options.compile_only:
        return
    ready = program.load(launch.ptx)
    names = [name for name, _, _ in ready.kernel.parameters]
    if len(arguments) > len(names):
        raise PTXError(f"{launch.name}: {len(arguments)} arguments for {len(names)} parameters")
    values, regions = [0] * len(names), {}
    for place, (name, value) in enumerate(arguments):
        if hasattr(value, "data_ptr"):
            regions[names[place]] = region(value, name, options.bounds)
            value = value.data_ptr()
        values[place] = 0 if value is None else value
    for symbol, data in ready.tables.items():
        regions[symbol] = Region(data.ctypes.data, data.ctypes.data + data.nbytes, symbol)
    others = [region(tensor, "a mapped tensor", options.bounds) for group in _mapped for tensor in group]
    memory = GlobalMemory(regions, others, _live.find if options.reach == "live" else None)
    launch.tally = tally = counting[-1].tally(ready) if counting else None
    machine = Machine(
        ready,
        launch.shared,
        races=options.races,
        batch_threads=options.batch_threads,
        max_blocks=options.max_blocks,
    )
    machine.launch(launch.grid, values, memory, tally)
    if tally:
        launch.n, launch.ops = tally.finish(math.prod(launch.grid) * ready.kernel.threads // 32)


class Loaded(NamedTuple):
    """A loaded kernel."""

    name: str
    ptx: str
    shared: int


class Launcher:
    """Runs one compiled kernel: Triton makes a launcher per kernel, and calls it per launch."""

    def __init__(self, source, metadata):
        self.metadata, self.signature = metadata, dict(source.signature)

    def __call__(self, x, y, z, stream, loaded, packed, launch_metadata, enter, leave, *arguments):
        if enter is not None:
            enter(launch_metadata)
        if x * y * z:
            self._launch((x, y, z), loaded, arguments)
        if leave is not None:
            leave(launch_metadata)

    def _launch(self, grid: tuple[int, int, int], loaded: Loaded, arguments: tuple) -> None:
        given: list[tuple[str, object]] = []
        for (name, signature), value in zip(self.signature.items(), arguments, strict=True):
            _flatten(signature, value, name, given)
        for name in ("global_scratch", "profile_scratch"):
            size = getattr(self.metadata, f"{name}_size", 0) * math.prod(grid)
            given.append((name, torch.zeros(size, dtype=torch.int8) if size else 0))
        _run(Launch(loaded.name, self.metadata.num_warps, grid, loaded.shared, loaded.ptx), given)


def _flatten(signature: object, value: object, name: str, given: list[tuple[str, object]]) -> None:
    """Append the kernel's parameters that an argument of the Python function stands for."""
    if isinstance(signature, tuple):
        for j, (inner, item) in enumerate(zip(signature, value, strict=True)):
            _flatten(inner, item, f"{name}.{j}", given)
    elif signature.startswith("tensordesc"):
        given += [(f"{name}.{j}", item) for j, item in enumerate(_decomposed(value))]
    elif signature != "constexpr":
        given.append((name, value))


def _decomposed(descriptor: object) -> list[object]:
    """The parameters that a tensor descriptor stands for, where no TMA unit reads it: Triton passes its shape
    and strides twice. Before Triton 3.7 there is no flag for the rounding."""
    flags = [descriptor.padding == "nan"]
    if hasattr(descriptor, "round_f32_to_tf32"):
        flags.append(descriptor.round_f32_to_tf32)
    sizes = [*descriptor.shape, *descriptor.strides]
    return [descriptor.base, *sizes, *flags, *sizes]


class Utils:
    """What a compiled kernel asks of the driver's C module."""

    def __init__(self, arch: int):
        self.arch = arch

    def load_binary(self, name, cubin, shared, device):
        loaded = Loaded(name, _latest.pop("ptx"), shared)
        registers, spills, max_threads = 0, 0, 1024
        return loaded, loaded, registers, spills, max_threads

    def unload_module(self, module):
        pass

    def get_device_properties(self, device):
        """Those of an A100, or of an H100 and what came after it."""
        first = self.arch < 90
        return {
            "max_shared_mem": 166912 if first else 232448,
            "multiprocessor_count": 108 if first else 132,
            "max_num_regs": 65536,
            "warpSize": 32,
            "sm_clock_rate": 1410000,
            "mem_clock_rate": 1215000,
            "mem_bus_width": 5120,
        }


class DeviceInterface:
    """The few functions of torch.cuda that Triton's helpers use."""

    @staticmethod
    def current_device():
        return 0

    @staticmethod
    def synchronize(*_):
        pass

    @staticmethod
    def current_stream(*_):
        return None


class EmulatorDriver(GPUDriver):
    def __init__(self, arch: int):
        self.arch, self.utils, self.launcher_cls = arch, Utils(arch), Launcher
        self.get_device_capability = lambda device=None: divmod(arch, 10)
        self.get_current_device = lambda: arch  # tells architectures apart in Triton's caches of kernels
        self.get_current_stream = lambda device=None: 0
        self.set_current_device = lambda device: None

    @staticmethod
    def is_active():
        return True

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return DeviceInterface

    def map_python_to_cpp_type(self, type_):
        return type_

    def get_benchmarker(self):
        raise PTXError("the emulator has no clock: it counts, and measures no time")


def _remember(module, function, name, metadata_group, hash):
    path = next(path for file, path in metadata_group.items() if file.endswith(".ptx"))
    _latest["ptx"] = Path(path).read_text()


def _leave_ptx(backend=None, stages=None, *_) -> tuple[str, str] | None:
    """Triton's hook of stages: the emulator runs PTX, so ptxas need not assemble it. Called without arguments
    it says what keeps such kernels apart in Triton's caches."""
    if stages is None:
        return "PTX alone", "PTX alone"
    if "cubin" in stages:
        stages["cubin"] = lambda ptx, metadata: b""


def activate(arch: int = 80, **changes: object) -> None:
    """From here on Triton compiles for sm_`arch`, and the emulator runs its launches on CPU tensors.

    Args:
        changes: fields of `Options`; the others keep their values.
    """
    global options
    unknown = changes.keys() - {field.name for field in fields(Options)}
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; there are {[f.name for f in fields(Options)]}")
    options = replace(options, **changes)
    knobs.runtime.kernel_load_start_hook = _remember
    knobs.runtime.add_stages_inspection_hook = _leave_ptx  # before Triton 3.6 nobody calls it
    triton.runtime.driver.set_active(EmulatorDriver(arch))


@contextlib.contextmanager
def active(arch: int = 80, **changes: object) -> Iterator[None]:
    """`activate`, undone at the end."""
    global options
    driver = triton.runtime.driver
    hooks = ("kernel_load_start_hook", "add_stages_inspection_hook")
    place = "_active" if hasattr(driver, "_active") else "active"  # the latter before Triton 3.5
    before = getattr(driver, place), options
    hooked = {name: getattr(knobs.runtime, name, None) for name in hooks}
    activate(arch, **changes)
    try:
        yield
    finally:
        options = before[1]
        setattr(driver, place, before[0])
        for name, hook in hooked.items():
            setattr(knobs.runtime, name, hook)
