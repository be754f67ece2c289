# SPDX-License-Identifier: Apache-2.0
"""`python -m specdec_kernels` is `specdec`."""

from .cli import main

if __name__ == "__main__":
    main()
