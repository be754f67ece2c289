# SPDX-License-Identifier: Apache-2.0
"""What there is to know of the Triton kernels without a GPU: see docs/gpu_counts.md."""
