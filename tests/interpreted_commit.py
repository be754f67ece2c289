# SPDX-License-Identifier: Apache-2.0
"""Run by test_commit.py under TRITON_INTERPRET=1: caches and states against the reference, small cases."""

from __future__ import annotations

import torch
from paging import random_tree

import specdec_kernels as sdk
from bench.paging import block_tables


def main() -> None:
    cases = 0
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        tree, path = random_tree(g, 2, most=5)
        rows, layout = tree.tokens.numel(), ("NHD", "HND")[seed % 2]
        caches = [
            torch.randn(8, 4, 4, size, generator=g).to(dtype) for size, dtype in ((8, torch.float32),) * 2
        ]
        caches.append(torch.randn(8, 4, 4, 3, generator=g).bfloat16())  # rows of 6 or 24 bytes
        new = [torch.randn(rows, 4, cache.shape[3], generator=g).to(cache.dtype) for cache in caches]
        table, prefix_lens = block_tables(g, 2, 4, 8), torch.randint(0, 9, (2,), generator=g).int()
        state, slots = torch.randn(3, 2, 5, 4, generator=g), torch.tensor([2, -1])
        vectors, scalars = torch.randn(rows, 2, 5, generator=g), torch.rand(rows, 2, generator=g)
        results = []
        for backend in ("triton", "reference"):
            both = [cache.clone() for cache in caches], [cache.clone() for cache in caches]
            states = [state.clone() for _ in range(4)]
            options = dict(page_size=4, layout=layout, backend=backend)
            committed = sdk.commit_kv(both[0], path, tree, table, prefix_lens, **options)
            sdk.commit_kv(both[1], path, tree, table, prefix_lens, new=new, **options)
            kept, narrow = (path, tree, slots), vectors[..., :4].contiguous()
            snapshots = [vectors[:, :, :, None] * torch.ones(4)]
            delta = dict(keys=[vectors], values=[narrow], log_decay=[-scalars], beta=[scalars])
            mamba = dict(x=[vectors], B=[narrow], dt=[scalars], A=[-torch.ones(2)])
            sdk.commit_state(*kept, states=[states[0]], snapshots=snapshots, backend=backend)
            sdk.replay_conv(*kept, windows=[states[1][:, 0]], inputs=[vectors[:, 0]], backend=backend)
            sdk.replay_gated_delta(*kept, states=[states[2]], **delta, backend=backend)
            sdk.replay_mamba2(*kept, states=[states[3]], **mamba, backend=backend)
            results.append([*both[0], *both[1], *committed, *states])
        for ours, wanted in zip(*results, strict=True):
            torch.testing.assert_close(ours, wanted, equal_nan=True)
            cases += 1
    print(f"{cases} cases agree")


if __name__ == "__main__":
    main()
