"""The specification: every operation in plain PyTorch, dense, in float64, one request at a time.

Reads like the mathematics and runs on tensors of any device, which it copies to the host. The other backends
are tested against it.
"""

from .attention import tree_attention
from .sample import sample
from .verify import verify

__all__ = ["sample", "tree_attention", "verify"]
