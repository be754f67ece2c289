# SPDX-License-Identifier: Apache-2.0
"""Triton's own driver and launchers over a driver library without a device.

Kernels compile for sm_90. Tensors lie on the host, and launches do nothing."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia


class StubDriver(nvidia.CudaDriver):
    def __init__(self) -> None:
        super().__init__()
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.set_current_device = lambda device: None
        self.get_device_capability = lambda device=None: (9, 0)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def launches_do_nothing() -> Iterator[None]:
    """Inside, `kernel[grid](*cpu_tensors)` does all that it does on the host of a GPU, and no more."""
    with tempfile.TemporaryDirectory() as folder:
        library, source = Path(folder) / "libcuda.so.1", Path(__file__).with_name("cuda_stub.c")
        command = ["cc", "-O2", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(source)]
        subprocess.run([*command, "-o", str(library)], check=True)
        # What is loaded is found by its name, wherever Triton looks for the driver library.
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        before, path = triton.runtime.driver._active, knobs.nvidia.libcuda_path
        knobs.nvidia.libcuda_path = folder
        try:
            triton.runtime.driver.set_active(StubDriver())
            yield
        finally:
            triton.runtime.driver._active, knobs.nvidia.libcuda_path = before, path
