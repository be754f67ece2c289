# SPDX-License-Identifier: Apache-2.0
"""Other projects' kernels in the model, and the published times that the model is held against.

The facts were counted once by `facts.of_call`, from the projects' own sources, which are not kept here:
FlashInfer at fb28d7242 (`include/flashinfer/sampling.cuh`, compiled by nvcc 13.0 with another generator of
random numbers) and vLLM at 51b2333be (`vllm/v1/sample/ops/topk_topp_triton.py`). What could not be counted is
stated by passes and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import model
from .cards import B200
from .model import Facts

COUNTED, STATED, PARTLY = "emulated", "stated passes", "emulated; softmax stated"
ALONE = 130 << 10  # bytes of shared memory with which no second program fits: a program to a processor

# FlashInfer's kernels for probabilities of uniform random numbers, as in its own benchmark.
CHAIN_32000 = Facts(  # chain_speculative_sampling, 8 requests, K = 5, V = 32000
    "chain", programs=8, warps=32, registers=48, shared=8192,
    pipes={"issue": 373e3, "alu": 161e3, "imad": 40.8e3, "memory": 45.3e3, "fma": 58.7e3, "special": 1.63e3},
    chain=(32100, 38400), longest=(38000, 45500),
    new=1794400, again=0, written=256, requested=3048448,
)  # fmt: skip
CHAIN_8 = Facts(  # the same, K = 8, V = 128256
    "chain", programs=8, warps=32, registers=48, shared=8192,
    pipes={"issue": 1.02e6, "alu": 433e3, "imad": 75.2e3, "memory": 130e3, "fma": 190e3, "special": 4.33e3},
    chain=(97600, 121000), longest=(135000, 166000),
    new=8212288, again=0, written=352, requested=12436480,
)  # fmt: skip
SAMPLING_32000 = Facts(  # sampling_from_probs, 32 rows of 32000
    "sampling", programs=32, warps=32, registers=43, shared=8192,
    pipes={"issue": 618e3, "alu": 315e3, "imad": 57.2e3, "memory": 69.7e3, "fma": 70.9e3, "special": 4.61e3},
    chain=(13600, 15900), longest=(19400, 22900),
    new=2342912, again=0, written=160, requested=2344960,
)  # fmt: skip
SAMPLING = Facts(  # the same, 64 rows of 128256
    "sampling", programs=64, warps=32, registers=43, shared=8192,
    pipes={"issue": 3.19e6, "alu": 1.74e6, "imad": 235e3, "memory": 346e3, "fma": 357e3, "special": 30.8e3},
    chain=(37500, 45000), longest=(76100, 92100),
    new=15717376, again=0, written=320, requested=15721472,
)  # fmt: skip
MIN_P_32000 = Facts(  # min_p_sampling_from_probs, 0.1, 32 rows of 32000
    "min-p", programs=32, warps=32, registers=32, shared=8192,
    pipes={"issue": 1.06e6, "alu": 569e3, "imad": 98.1e3, "memory": 105e3, "fma": 111e3, "special": 6.66e3},
    chain=(23200, 33400), longest=(28800, 40300),
    new=4096128, again=0, written=160, requested=10633216,
)  # fmt: skip
MIN_P = Facts(  # the same, 0.05, 32 rows of 128256
    "min-p", programs=32, warps=32, registers=32, shared=8192,
    pipes={"issue": 3.11e6, "alu": 1.81e6, "imad": 264e3, "memory": 268e3, "fma": 330e3, "special": 18.7e3},
    chain=(70700, 111000), longest=(96700, 143000),
    new=16416896, again=0, written=160, requested=41533440,
)  # fmt: skip
TOP_P_32000 = Facts(  # top_p_sampling_from_probs, 0.9, 32 rows of 32000
    "top-p", programs=32, warps=32, registers=32, shared=8192,
    pipes={"issue": 1.25e6, "alu": 635e3, "imad": 83.4e3, "memory": 117e3, "fma": 190e3, "special": 6.48e3},
    chain=(26300, 34100), longest=(48300, 62300),
    new=4096128, again=0, written=160, requested=8171520,
)  # fmt: skip
TOP_P_128256 = Facts(  # the same, 0.95, 32 rows of 128256
    "top-p", programs=32, warps=32, registers=32, shared=8192,
    pipes={"issue": 3.22e6, "alu": 1.79e6, "imad": 214e3, "memory": 247e3, "fma": 505e3, "special": 18.1e3},
    chain=(67400, 93600), longest=(121000, 169000),
    new=16416896, again=0, written=160, requested=27119616,
)  # fmt: skip
CHAIN_5 = Facts(  # chain_speculative_sampling where 0.7 are accepted, 8 requests, K = 5, V = 128256
    "chain", programs=8, warps=32, registers=48, shared=8192,
    pipes={"issue": 994e3, "alu": 426e3, "imad": 60.3e3, "memory": 122e3, "fma": 191e3, "special": 4.39e3},
    chain=(96900, 121000), longest=(130000, 161000),
    new=6671776, again=0, written=256, requested=10380288,
)  # fmt: skip
TOP_P = Facts(  # FlashInfer's top-p sampling from probabilities, p = 0.9, 16 rows of 131072 by Zipf's law
    "top-p", programs=16, warps=32, registers=32, shared=8192,
    pipes={"issue": 1.7e6, "alu": 940e3, "imad": 111e3, "memory": 135e3, "fma": 260e3, "special": 10.3e3},
    chain=(72500, 99500), longest=(126000, 174000),
    new=8388672, again=0, written=96, requested=14174208,
)  # fmt: skip
MASK_BOTH = Facts(  # vLLM's Triton kernel, top-k 100 and top-p 0.9, 16 such rows
    "mask", programs=16, warps=4, registers=255, shared=ALONE,
    pipes={"issue": 4.99e6, "alu": 2.97e6, "imad": 888e3, "memory": 632e3, "fma": 356e3, "special": 20e3},
    chain=(257000, 273000), longest=(264000, 280000),
    new=8732192, again=0, written=8732032, requested=61889536,
)  # fmt: skip
MASK_TOP_K = Facts(  # the same, top-k 50
    "mask", programs=16, warps=4, registers=255, shared=ALONE,
    pipes={"issue": 3.88e6, "alu": 2.4e6, "imad": 778e3, "memory": 496e3, "fma": 93.4e3, "special": 8.16e3},
    chain=(176000, 193000), longest=(181000, 197000),
    new=8732128, again=0, written=8732032, requested=34769792,
)  # fmt: skip
MASK_TOP_P = Facts(  # the same, top-p 0.9
    "mask", programs=16, warps=4, registers=255, shared=ALONE,
    pipes={"issue": 11.8e6, "alu": 6.69e6, "imad": 1.58e6, "memory": 1.22e6, "fma": 1.95e6, "special": 159e3},
    chain=(591000, 616000), longest=(665000, 690000),
    new=9701056, again=0, written=9700960, requested=207174464,
)  # fmt: skip


def softmax(count: int, vocab: int) -> Facts:
    """PyTorch's, stated: a program of 32 warps to a row, which it reads three times, each time in steps of
    4096 elements that wait for their loads and take 20 instructions of every warp, and writes once."""
    steps, row = 3 * -(-vocab // 4096), 4 * vocab
    cycles = (steps * (250.0 + 50.0), steps * (750.0 + 50.0))
    return Facts(
        "softmax", programs=count, warps=32, registers=32, shared=1024,
        pipes={"issue": 20 * 32 * steps * count}, chain=cycles, longest=cycles,
        new=count * row, again=0, written=count * row, requested=4 * count * row,
    )  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A time that others measured on a B200, and what the model makes of it."""

    name: str
    source: str
    published: float  # us
    launches: tuple[Facts, ...]
    counted: str = COUNTED

    @property
    def predicted(self) -> float:
        return 1e6 * model.seconds(self.launches, B200)

    @property
    def ratio(self) -> float:
        return self.predicted / self.published


FLASHINFER = "FlashInfer 0.6.2, benchmarks/samples"
VLLM = "vllm#40376"


def _top_p(count: int) -> tuple[Facts, ...]:
    return softmax(count, 131072), TOP_P.times(count / 16)


PUBLISHED = (
    Published(
        "FlashInfer chain_speculative_sampling, 16 x 5 x 32000", FLASHINFER, 27, (CHAIN_32000.times(2),)
    ),
    Published("FlashInfer chain_speculative_sampling, 32 x 8 x 128256", FLASHINFER, 78, (CHAIN_8.times(4),)),
    Published("FlashInfer sampling_from_probs, 32 x 32000", FLASHINFER, 14, (SAMPLING_32000,)),
    Published("FlashInfer sampling_from_probs, 64 x 128256", FLASHINFER, 43, (SAMPLING,)),
    Published("FlashInfer min_p_sampling_from_probs, 32 x 32000", FLASHINFER, 13, (MIN_P_32000,)),
    Published("FlashInfer min_p_sampling_from_probs, 32 x 128256", FLASHINFER, 42, (MIN_P,)),
    Published("FlashInfer top_p_sampling_from_probs, 32 x 32000", FLASHINFER, 23, (TOP_P_32000,)),
    Published("FlashInfer top_p_sampling_from_probs, 32 x 128256", FLASHINFER, 72, (TOP_P_128256,)),
    Published("FlashInfer top-p, 64 rows", VLLM, 106, _top_p(64), PARTLY),
    Published("FlashInfer top-p, 128 rows", VLLM, 139, _top_p(128), PARTLY),
    Published("FlashInfer top-p, 512 rows", VLLM, 372, _top_p(512), PARTLY),
    Published("Triton top-p, 64 rows", VLLM, 459, (MASK_TOP_P.times(4),)),
    Published("Triton top-p, 128 rows", VLLM, 528, (MASK_TOP_P.times(8),)),
    Published("Triton top-p, 512 rows", VLLM, 2013, (MASK_TOP_P.times(32),)),
    Published("Triton top-k + top-p, 64 rows", VLLM, 311, (MASK_BOTH.times(4),)),
    Published("Triton top-k + top-p, 128 rows", VLLM, 359, (MASK_BOTH.times(8),)),
    Published("Triton top-k, 64 rows", VLLM, 252, (MASK_TOP_K.times(4),)),
    Published("Triton top-k, 128 rows", VLLM, 302, (MASK_TOP_K.times(8),)),
    Published("Triton top-k, 512 rows", VLLM, 1124, (MASK_TOP_K.times(32),)),
)


@dataclass(frozen=True)
class Peer:
    """Another project's way to do what a call of ours does, for chains of K = 5 at V = 128256."""

    name: str
    launches: Callable[[int], list[Facts]]  # of a batch
    counted: str = COUNTED


PEERS = (
    Peer(
        "FlashInfer chain_speculative_sampling, given probabilities in float32",
        lambda batch: [CHAIN_5.times(batch / 8)],
    ),
    Peer(
        "the same after softmax of the target's and the draft's rows",
        lambda batch: [softmax(6 * batch, 128256), softmax(5 * batch, 128256), CHAIN_5.times(batch / 8)],
        PARTLY,
    ),
    Peer(
        "vLLM's Triton mask by top-k 100 and top-p 0.9 of the target's rows, V = 131072, before any rule",
        lambda batch: [MASK_BOTH.times(6 * batch / 16)],
    ),
    Peer(
        "vLLM's Triton mask by top-p 0.9 of the target's rows, V = 131072, before any rule",
        lambda batch: [MASK_TOP_P.times(6 * batch / 16)],
    ),
)
