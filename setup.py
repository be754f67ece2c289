# SPDX-License-Identifier: Apache-2.0
"""Build of the native CPU backend. SPECDEC_NO_CPP=1 installs without a compiler."""

import os

from setuptools import setup

ext_modules, cmdclass = [], {}
if os.environ.get("SPECDEC_NO_CPP", "0") in ("", "0"):
    from glob import glob

    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext

    ParallelCompile("NPY_NUM_BUILD_JOBS").install()
    sanitize = os.environ.get("SPECDEC_SANITIZE", "")  # e.g. address,undefined
    flags = [
        "-O3",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        "-Wno-unknown-pragmas",
    ]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-g1", "-O1"]
    ext_modules = [
        Pybind11Extension(
            "specdec_kernels.cpu._native",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=20,
            extra_compile_args=flags,
            extra_link_args=[f"-fsanitize={sanitize}"] if sanitize else [],
        )
    ]
    cmdclass = {"build_ext": build_ext}

setup(ext_modules=ext_modules, cmdclass=cmdclass)
