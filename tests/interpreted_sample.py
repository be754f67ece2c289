# SPDX-License-Identifier: Apache-2.0
"""Run by test_triton_interpreter.py under TRITON_INTERPRET=1: `sample` against the reference, small cases."""

from __future__ import annotations

import torch

import specdec_kernels as sdk


def main() -> None:
    g = torch.Generator().manual_seed(1)
    inf, nan = float("inf"), float("nan")
    cases = 0
    for vocab, dtype in ((1, torch.float32), (70, torch.bfloat16), (1500, torch.float32)):
        logits = (torch.randn(5, vocab, generator=g) * 3).to(dtype)
        logits[0, 0] = nan
        logits[1] = -inf
        logits[2, vocab // 2] = inf
        words = torch.full((5, (vocab + 31) // 32), 0x5B5B5B5B, dtype=torch.int32)
        keys = dict(seeds=torch.arange(5) - 2**40, positions=torch.arange(5) + 2**33, return_logprobs=True)
        for sampling in (
            sdk.SamplingParams(torch.tensor([0.0, 0.7, 0.9, 0.0, 1.2])),
            sdk.SamplingParams(0.8, top_k=7, top_p=0.9, min_p=0.01),
            sdk.SamplingParams(0.8, top_k=7, top_p=0.9, min_p=0.2, order="min_p_last"),
            sdk.SamplingParams(2.0, top_k=300, top_p=0.99),
        ):
            for mask in (None, words):
                tokens, logprobs = sdk.sample(logits, sampling, token_bitmask=mask, backend="triton", **keys)
                others, other_logprobs = sdk.sample(
                    logits, sampling, token_bitmask=mask, backend="reference", **keys
                )
                assert torch.equal(tokens, others), (vocab, dtype, sampling)
                torch.testing.assert_close(logprobs, other_logprobs, rtol=1e-5, atol=5e-6)
                cases += 1
    print(f"{cases} cases agree")


if __name__ == "__main__":
    main()
