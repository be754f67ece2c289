# SPDX-License-Identifier: Apache-2.0
"""What is installed here, and what could be."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .._ops.backends import _native, _triton

PACKAGES = ("torch", "triton", "numpy", "transformers", "vllm", "sglang", "xgrammar", "llguidance")


def facts() -> dict[str, Any]:
    """Versions, processor, GPUs and backends, as JSON holds them."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "specdec_kernels": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "switches": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("SPECDEC_")
        },
    }


def advice(found: dict[str, Any]) -> list[str]:
    """What to install or to change, most important first."""
    lines = []
    module, reason = _native()
    if module is None:
        lines.append(f"CPU tensors are served by the slow reference: {reason}; install with a C++20 compiler")
    module, reason = _triton()
    if found["gpus"] and module is None:
        lines.append(f"CUDA tensors are served by the slow reference: {reason}; pip install 'triton>=3.7.1'")
    if "transformers" not in found["packages"]:
        lines.append("generate() needs transformers: pip install 'specdec-kernels[transformers]'")
    engines = {"vllm": "SPECDEC_VLLM", "sglang": "SPECDEC_SGLANG"}
    for name, switch in engines.items():
        if name in found["packages"] and switch not in found["switches"]:
            lines.append(f"{name} is here and does not use this package: set {switch}=1")
    return lines


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Its name, and how many threads it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} threads"
