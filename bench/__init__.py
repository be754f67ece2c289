# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of `specdec_kernels`; run with `python -m bench`."""
