"""The emulated GPU that Triton's kernels run on in tests."""

from triton_ptx_driver import active, count, resources

__all__ = ["active", "count", "resources"]
