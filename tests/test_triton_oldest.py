# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles with the oldest Triton that the backend takes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from each import BACKENDS

if "triton" not in BACKENDS:
    pytest.skip("needs Triton", allow_module_level=True)

from oldest_triton import SM_90

from bench.gpu import targets, variants

pytestmark = pytest.mark.slow
OLDEST = Path(sys.prefix, "triton-oldest")  # `make` puts it there
ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not OLDEST.is_dir(), reason="`make test` installs the oldest Triton")
def test_every_kernel_compiles_with_the_oldest_triton(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (OLDEST, ROOT, ROOT / "tests"))),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, str(ROOT / "tests" / "oldest_triton.py")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    oldest = "3.4" if sys.version_info < (3, 14) else "3.5"  # the first with wheels for this Python
    assert result["version"].startswith(oldest)
    assert result["registers"].keys() == {kernel.name for kernel in targets.kernels(SM_90, variants.calls())}
    assert all(result["registers"].values())
