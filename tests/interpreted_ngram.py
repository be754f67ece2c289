# SPDX-License-Identifier: Apache-2.0
"""Run by test_triton_interpreter.py under TRITON_INTERPRET=1: prompt lookup against the reference."""

from __future__ import annotations

import torch

import specdec_kernels as sdk


def main() -> None:
    tokens = torch.randint(3, (3, 24), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([24, 15, 1])
    cases = 0
    for cyclic in (False, True):
        for match in ("latest", "frequent"):
            drafted, expected = (
                sdk.ngram_draft(tokens, lengths, 5, match=match, cyclic=cyclic, backend=backend)
                for backend in ("triton", "reference")
            )
            assert torch.equal(drafted, expected), (cyclic, match)
            cases += 1
        (tree, scores), (other, expected) = (
            sdk.ngram_tree(tokens, lengths, 12, cyclic=cyclic, backend=backend)
            for backend in ("triton", "reference")
        )
        assert torch.equal(tree.tokens, other.tokens), cyclic
        assert torch.equal(tree.parents, other.parents), cyclic
        assert torch.equal(scores, expected), cyclic
        cases += 1
    print(f"{cases} cases agree")


if __name__ == "__main__":
    main()
