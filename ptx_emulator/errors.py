# SPDX-License-Identifier: Apache-2.0
"""The one error of the emulator."""


class PTXError(Exception):
    """A program did what a GPU would not forgive, or uses PTX that this emulator does not know."""
