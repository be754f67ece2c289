# SPDX-License-Identifier: Apache-2.0
"""The records that public functions hand to operators."""

import torch

from specdec_kernels import _ops as ops
from specdec_kernels._ops.calls import OPERATORS


def recorded(monkeypatch, operation, run):
    """What `run` calls the operator with: its record, and the backend."""
    calls, original = [], getattr(ops, operation)
    with monkeypatch.context() as patch:
        patch.setattr(ops, operation, lambda *args: (calls.append(args), original(*args))[1])
        run()
    return calls[0]


def opcheck(call, backend):
    """PyTorch's own checks of the operator of a record."""
    operation = next(name for name, operator in OPERATORS.items() if type(call) is operator.record)
    torch.library.opcheck(getattr(torch.ops.specdec_kernels, operation).default, (backend, *call))
