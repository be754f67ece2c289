# SPDX-License-Identifier: Apache-2.0
"""The floor: plain C that does nothing but the log-sum-exp of every row, built when the benchmark starts."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

CFLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
TOLERANCE = 5e-5  # a float32 sum of 128256 terms


def library(source: str) -> ctypes.CDLL:
    """The functions of a C file of this folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        file = Path(__file__).with_name(source)
        subprocess.run(["cc", *CFLAGS, str(file), "-o", str(path), "-lm"], check=True)
        return ctypes.CDLL(str(path))


class Floor:
    """`floor(logits, temperature)` fills and returns the rows' log-sum-exps, on torch's number of threads."""

    def __init__(self) -> None:
        self._lse_rows = library("floor.c").lse_rows
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._lse_rows.argtypes = [pointer, pointer, size, size, ctypes.c_float, ctypes.c_int, ctypes.c_int]
        self._lse_rows.restype = None

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        vocab = logits.shape[-1]
        out = torch.empty(logits.shape[:-1])
        is_bf16 = logits.dtype == torch.bfloat16
        threads = torch.get_num_threads()
        rows = logits.numel() // vocab
        self._lse_rows(logits.data_ptr(), out.data_ptr(), rows, vocab, 1 / temperature, is_bf16, threads)
        return out

    def check(self, logits: Tensor, temperature: float) -> str | None:
        """What is wrong with it, or None."""
        expected = torch.logsumexp(logits.double() / temperature, -1)
        error = (self(logits, temperature) - expected).abs().max().item()
        return None if error < TOLERANCE else f"log-sum-exp is off by {error:.1e}"
