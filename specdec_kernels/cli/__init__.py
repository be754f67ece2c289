# SPDX-License-Identifier: Apache-2.0
"""The command line: `specdec`, or `python -m specdec_kernels`. See docs/cli.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and leave the process with its exit code."""
    try:
        from .commands import specdec
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("specdec: the command line needs click: pip install 'specdec-kernels[cli]'", file=sys.stderr)
        sys.exit(2)
    specdec.main(arguments, prog_name="specdec")
