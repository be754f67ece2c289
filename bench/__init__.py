"""Benchmarks of `specdec_kernels`; run with `python -m bench`."""
