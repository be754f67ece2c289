# SPDX-License-Identifier: Apache-2.0
"""What results are compared with: the native core where it is or can be built, else the reference."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import torch

from .device import ROOT

NAME = "specdec_kernels.cpu._native"
PACKAGE, SOURCES = ROOT / "specdec_kernels" / "cpu", ROOT / "csrc"
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")


@cache
def backend() -> tuple[str, str]:
    """The backend's name, and how it came about."""
    try:
        built = "" if PathFinder.find_spec("_native", [str(PACKAGE)]) else _build()
    except (ImportError, RuntimeError, OSError) as error:
        return "reference", f"float64 in PyTorch, since the native core is not here: {error}"
    if built:
        spec = importlib.util.spec_from_file_location(NAME, built)
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
        importlib.import_module("specdec_kernels.cpu")
    return "cpu", f"the native core, {'built for this run' if built else 'as it was installed'}"


def _build() -> str:
    """Builds it with g++ and the headers that come with torch, in `build/`; its file."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise RuntimeError(f"there is no {compiler}")
    headers = sysconfig.get_paths()["include"]
    if not (Path(headers) / "Python.h").exists():
        raise RuntimeError("Python.h is missing")
    include = [headers, str(Path(torch.__file__).parent / "include")]
    for found in filter(None, [importlib.util.find_spec("pybind11")]):
        include.insert(0, str(Path(found.origin).parent / "include"))
    folder = ROOT / "build" / f"gate-{_digest()}"
    library = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if library.exists():
        return str(library)
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, *(f"-I{path}" for path in include)]
    objects = {source: folder / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cpp"))}
    commands = [[compiler, *flags, "-c", str(source), "-o", str(o)] for source, o in objects.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_call, commands))
    unfinished = library.with_suffix(".unfinished")
    _call([compiler, "-shared", *map(str, objects.values()), "-o", str(unfinished)])
    unfinished.rename(library)
    return str(library)


def _digest() -> str:
    """Of the sources and of what they are compiled for."""
    digest = hashlib.sha256(repr((FLAGS, torch.__version__, sys.version)).encode())
    for source in sorted(SOURCES.glob("*")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
