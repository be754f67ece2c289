# SPDX-License-Identifier: Apache-2.0
"""Runs Triton kernels without a GPU: the PTX that Triton generates, on CPU tensors, checked and counted.

    import ptx_emulator

    ptx_emulator.activate(80)
    with ptx_emulator.count() as launches:
        kernel[grid](x, y, n, BLOCK=1024)
    print(launches)

See docs/ptx_emulator.md.
"""

from .counts import Launch, Launches, count
from .driver import activate, active, mapped, run
from .errors import PTXError
from .resources import resources

__all__ = ["Launch", "Launches", "PTXError", "activate", "active", "count", "mapped", "resources", "run"]
