"""The backends that serve CPU tensors here: Triton's kernels run in the emulator."""

from __future__ import annotations

import os

import ptx_emulator
from specdec_kernels import backends

NATIVE = ["cpu"] if backends._native()[0] is not None else []
EMULATED = [] if "SPECDEC_SANITIZE" in os.environ else ["triton"]
BACKENDS = ["reference", *NATIVE, *EMULATED]

if EMULATED:
    ptx_emulator.activate(80, reach="live")
