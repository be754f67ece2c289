# SPDX-License-Identifier: Apache-2.0
"""Build of the native CPU backend, and of the library behind `include/specdec.h` from the same objects.
SPECDEC_NO_CPP=1 installs without a compiler."""

import os

from setuptools import setup

ext_modules, cmdclass = [], {}
if os.environ.get("SPECDEC_NO_CPP", "0") in ("", "0"):
    import re
    import shutil
    import sys
    from glob import glob
    from pathlib import Path

    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext

    ParallelCompile("NPY_NUM_BUILD_JOBS").install()
    sanitize = os.environ.get("SPECDEC_SANITIZE", "")  # e.g. address,undefined
    version = re.search(r'^__version__ = "(.*)"', Path("specdec_kernels/__init__.py").read_text(), re.M)[1]
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
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-g1", "-O0"]
    link_flags = [f"-fsanitize={sanitize}"] if sanitize else []
    if sys.platform == "darwin":
        library_name, binding = "libspecdec.dylib", []
        exported = [f"-Wl,-install_name,@rpath/{library_name}"]
    else:
        library_name, binding = "libspecdec.so", ["-Wl,-Bsymbolic"]
        exported = [
            f"-Wl,-soname,{library_name}",
            "-Wl,-z,nodelete",
            "-Wl,--version-script=csrc/libspecdec.map",
        ]
    core = sorted(set(glob("csrc/*.cpp")) - {"csrc/bindings.cpp"})

    class Build(build_ext):
        """Also links `libspecdec`, and puts it and its header into the package."""

        def build_extension(self, extension):
            super().build_extension(extension)
            built = Path(self.get_ext_fullpath(extension.name))
            package = built.parent.parent
            library = package / "lib" / library_name
            for folder in ("include", "lib"):
                (package / folder).mkdir(exist_ok=True)
            shutil.copy("include/specdec.h", package / "include")
            if library.exists() and library.stat().st_mtime >= built.stat().st_mtime:
                return
            if sys.platform == "darwin":  # a library to link with, where an extension is a bundle
                for linker in ("linker_so", "linker_so_cxx"):
                    command = getattr(self.compiler, linker, [])
                    setattr(self.compiler, linker, ["-dynamiclib" if a == "-bundle" else a for a in command])
            self.compiler.link_shared_object(
                self.compiler.object_filenames(core, output_dir=self.build_temp),
                str(library),
                extra_postargs=[*link_flags, *exported],
                target_lang="c++",
            )

        def copy_extensions_to_source(self):
            super().copy_extensions_to_source()
            library = Path("specdec_kernels", "lib")
            shutil.copytree(self.build_lib / library, library, dirs_exist_ok=True)

    ext_modules = [
        Pybind11Extension(
            "specdec_kernels.cpu._native",
            [*core, "csrc/bindings.cpp"],
            depends=[*sorted(glob("csrc/*.h")), "include/specdec.h"],
            include_dirs=["include"],
            define_macros=[("SPECDEC_VERSION", f'"{version}"')],
            cxx_std=20,
            extra_compile_args=flags,
            # Its own functions, whatever libspecdec the process has loaded.
            extra_link_args=[*link_flags, *binding],
        )
    ]
    cmdclass = {"build_ext": Build}

setup(ext_modules=ext_modules, cmdclass=cmdclass)
