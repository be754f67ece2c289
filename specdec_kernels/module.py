# SPDX-License-Identifier: Apache-2.0
"""Verification and committing as a module that holds options and counts acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ._checks import (
    bad_value,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_list,
    check_name,
    check_tensor,
    check_type,
    what,
)
from ._ops import backends
from ._verify_checks import check_draft_sampling
from .commit import CachePlan, Committed, commit_kv
from .drafting.acceptance import AcceptanceStats
from .edits import LogitEdits
from .ends import Ends, Finish
from .reporting import Logprobs, Masks, check_masks
from .rules import Rule, resolve
from .sampling import PLAIN, DraftVocab, SamplingParams
from .state import commit_state
from .tree import DraftTree
from .verification import Verified, verify


class SpeculativeVerifier(torch.nn.Module):
    """Holds the options of `verify` and the caches of a model, and counts what is accepted.

    Args:
        rule, draft_vocab, return_logprobs, return_masks, backend: as for `verify`.
        sampling, draft_sampling: as for `verify`, for calls that pass none.
        plan: the paged caches that `commit` changes.
        states: for each recurrent layer the states [slots, ...] that `commit` changes.
        max_depth: number of depths that are counted; deeper drafts are not counted.
        slots: number of slots whose counts are kept apart, one for each running request. Those of all
            requests are kept in any case.

    Raises:
        ValueError: wrong numbers or names.
        TypeError: wrong types.

    Notes:
        Counts are buffers of the module, on its device, and not part of its state dict. `forward` and
        `commit` never synchronise with the device; `statistics` does.

    Example:
        >>> cache = torch.zeros(4, 16, 2, 8)
        >>> verifier = SpeculativeVerifier(plan=CachePlan([cache], page_size=16), rule="match")
        >>> tree = DraftTree.chain(torch.tensor([[3, 4]]))
        >>> verified = verifier(torch.zeros(3, 8), tree, sampling=SamplingParams(temperature=0.0))
        >>> pages, prefix = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
        >>> verifier.commit(verified, tree, pages, prefix).lengths
        tensor([6], dtype=torch.int32)
        >>> verifier.statistics().tested[:2]
        (1, 0)
    """

    counts: Tensor
    """[3 + 2 * max_depth] int64: steps, drafted, passes; tested at each depth; accepted at each depth."""
    slot_counts: Tensor | None
    """[slots, 3 + 2 * max_depth] int64: the same for each slot."""

    def __init__(
        self,
        *,
        rule: Rule = "auto",
        sampling: SamplingParams = PLAIN,
        draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
        draft_vocab: DraftVocab | None = None,
        return_logprobs: bool | Logprobs = False,
        return_masks: Masks | None = None,
        plan: CachePlan | None = None,
        states: Sequence[Tensor] = (),
        max_depth: int = 64,
        slots: int = 0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        call = "SpeculativeVerifier"
        resolve(call, rule, False)
        check_type(call, "sampling", sampling, SamplingParams, "a SamplingParams")
        check_draft_sampling(call, draft_sampling)
        if draft_vocab is not None:
            check_type(call, "draft_vocab", draft_vocab, DraftVocab, "a DraftVocab")
        if not isinstance(return_logprobs, bool):
            check_type(call, "return_logprobs", return_logprobs, Logprobs, "a bool or a Logprobs")
        if return_masks is not None:
            check_masks(call, return_masks)
        if plan is not None:
            check_type(call, "plan", plan, CachePlan, "a CachePlan")
        states = check_list(call, "states", states, "tensors")
        for i, state in enumerate(states):
            check_type(call, f"states[{i}]", state, Tensor, "a tensor")
        max_depth = check_int(call, "max_depth", max_depth, 0)
        slots = check_int(call, "slots", slots, 0)
        check_name(call, "backend", backend, backends.NAMES)
        self.rule = rule
        self.sampling = sampling
        self.draft_sampling = draft_sampling
        self.draft_vocab = draft_vocab
        self.return_logprobs = return_logprobs
        self.return_masks = return_masks
        self.plan = plan
        self.states = states
        self.backend = backend
        counts = torch.zeros(3 + 2 * max_depth, dtype=torch.int64)
        self.register_buffer("counts", counts, persistent=False)
        apart = counts.new_zeros((slots, counts.shape[0])) if slots else None
        self.register_buffer("slot_counts", apart, persistent=False)

    def forward(
        self,
        target_logits: Tensor,
        tree: DraftTree,
        draft_logits: Tensor | None = None,
        *,
        target_rows: Tensor | None = None,
        bonus_tokens: Tensor | None = None,
        draft_rows: Tensor | None = None,
        sampling: SamplingParams | None = None,
        draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
        seeds: Tensor | None = None,
        positions: Tensor | None = None,
        token_bitmask: Tensor | None = None,
        edits: LogitEdits | None = None,
        ends: Ends | None = None,
        slots: Tensor | None = None,
        out: Verified | None = None,
    ) -> Verified:
        """`verify` with the module's options; counts what it accepted.

        The arguments that are not named here are as for `verify`.

        Args:
            slots: [B] int64, the slot of each request, given if the module has slots. A number that is no
                slot counts among all requests only.

        Returns:
            `Verified`.

        Raises:
            ValueError, TypeError, BackendUnavailable: as for `verify`.
        """
        apart: Any = self._buffers["slot_counts"]
        if slots is not None or apart is not None:
            self._check_slots(slots, tree)
        verified = verify(
            target_logits,
            tree,
            draft_logits,
            target_rows=target_rows,
            bonus_tokens=bonus_tokens,
            draft_rows=draft_rows,
            draft_vocab=self.draft_vocab,
            sampling=self.sampling if sampling is None else sampling,
            draft_sampling=self.draft_sampling if draft_sampling is None else draft_sampling,
            rule=self.rule,
            seeds=seeds,
            positions=positions,
            token_bitmask=token_bitmask,
            edits=edits,
            return_logprobs=self.return_logprobs,
            return_masks=self.return_masks,
            ends=ends,
            out=out,
            backend=self.backend,
        )
        self._count(verified, tree, slots)
        return verified

    def commit(
        self,
        verified: Verified | Tensor,
        tree: DraftTree,
        block_table: Tensor | None = None,
        prefix_lens: Tensor | None = None,
        *,
        new: Sequence[Tensor] | None = None,
        snapshots: Sequence[Tensor] | None = None,
        slots: Tensor | None = None,
    ) -> Committed | None:
        """`commit_kv` of the plan's caches and `commit_state` of the module's states; None without a plan.

        Args:
            verified, tree, block_table, prefix_lens, new: as for `commit_kv`; the tables only with a plan.
            snapshots, slots: as for `commit_state`, only with states.

        Raises:
            ValueError: an argument is missing or not needed; and as for `commit_kv` and `commit_state`.
            TypeError, BackendUnavailable: as for `commit_kv` and `commit_state`.
        """
        call = "SpeculativeVerifier.commit"
        if self.plan is None and not self.states:
            bad_value(call, "plan or states", "must be given to SpeculativeVerifier", "None and no states")
        for argument, given, needed in (
            ("block_table", block_table, self.plan is not None),
            ("prefix_lens", prefix_lens, self.plan is not None),
            ("snapshots", snapshots, len(self.states) > 0),  # torch 2.6 compiles no bool of a list
            ("slots", slots, len(self.states) > 0),
        ):
            if (given is not None) != needed:
                rule = "must be given" if needed else "must be None"
                what = "a plan" if argument in ("block_table", "prefix_lens") else "states"
                got = "None" if given is None else type(given).__name__
                bad_value(call, argument, f"{rule} {'with' if needed else 'without'} {what}", got)
        if new is not None and self.plan is None:
            bad_value(call, "new", "must be None without a plan", type(new).__name__)
        # States come first: they may be written twice, so a call that `commit_kv` refuses can be repeated.
        if snapshots is not None and slots is not None:
            commit_state(verified, tree, slots, states=self.states, snapshots=snapshots, backend=self.backend)
        if self.plan is None or block_table is None or prefix_lens is None:
            return None
        return commit_kv(self.plan, verified, tree, block_table, prefix_lens, new=new, backend=self.backend)

    def statistics(self, slot: int | None = None) -> AcceptanceStats:
        """The counts since the last reset, on the host. Synchronises.

        Args:
            slot: whose counts; default: those of all requests.

        Raises:
            ValueError: no such slot.
            TypeError: no int.
        """
        if slot is None:
            return _statistics(self.counts.tolist())
        call, apart = "SpeculativeVerifier.statistics", self.slot_counts
        if apart is None:
            bad_value(call, "slot", "must be None for a module without slots", slot)
        return _statistics(apart[check_int(call, "slot", slot, 0, apart.shape[0] - 1)].tolist())

    def statistics_by_slot(self) -> list[AcceptanceStats]:
        """The counts of every slot, on the host. Synchronises once."""
        return [] if self.slot_counts is None else [_statistics(row) for row in self.slot_counts.tolist()]

    def reset_statistics(self, slots: Tensor | None = None) -> None:
        """Set counts to 0.

        Args:
            slots: [n] int64, on the module's device: only the counts of these slots, which new requests take.
                The counts of all requests stay, and numbers that are no slot are passed over. Default: all
                counts.

        Raises:
            ValueError: a module without slots, wrong shapes.
            TypeError: wrong types, dtypes or devices.
        """
        if slots is None:
            self.counts.zero_()
            if self.slot_counts is not None:
                self.slot_counts.zero_()
            return
        call = "SpeculativeVerifier.reset_statistics"
        apart = self.slot_counts
        if apart is None:
            bad_value(call, "slots", "must be None for a module without slots", what(slots))
        check_dtype(call, "slots", slots, (torch.int64,))
        check_device(call, "slots", slots, apart.device)
        check_dim(call, "slots", slots, 1, "[n]")
        every = torch.arange(apart.shape[0], device=apart.device)
        apart.masked_fill_((every[:, None] == slots).any(1, keepdim=True), 0)

    def _check_slots(self, slots: Tensor | None, tree: DraftTree) -> None:
        call, apart = "SpeculativeVerifier.forward", self.slot_counts
        if slots is None:
            bad_value(call, "slots", "must be given to a module with slots", "None")
        if apart is None:
            bad_value(call, "slots", "must be None for a module without slots", what(slots))
        check_type(call, "tree", tree, DraftTree, "a DraftTree")
        check_tensor(call, "slots", slots, "[B]", (tree.batch_size,), (torch.int64,), apart.device)

    def _count(self, verified: Verified, tree: DraftTree, slots: Tensor | None = None) -> None:
        kernels = backends.kernels("verify", self.backend, tree.tokens.device.type)
        if kernels is not None:
            counts: Any = self._buffers["counts"]  # `self.counts` takes 0.5 us
            check_device("SpeculativeVerifier", "tree", tree.tokens, counts.device)
            trees = tree.tokens.contiguous(), tree.parents.contiguous(), tree.cu_nodes.contiguous()
            found = verified.path, verified.num_accepted, verified.finish
            if slots is None:
                kernels.count_accepted(*trees, *found, counts)
            else:
                kernels.count_accepted(*trees, *found, counts, slots.contiguous(), self.slot_counts)
            return
        batch, (request, node) = tree.batch_size, tree._owners
        taken = verified.num_accepted.long().unsqueeze(1)
        last = verified.path.gather(1, taken).squeeze(1)
        served = verified.num_tokens > 0
        there = torch.cat([served, served.new_zeros(1)])[request]
        drafted = (tree.tokens >= 0) & (node > 0) & there
        # If the last kept node has a drafted child, one more depth was tested than accepted.
        below_last = drafted & (tree.parents == torch.cat([last, last.new_zeros(1)])[request])
        of_nodes = torch.stack([drafted, below_last], 1).long()
        sums = torch.zeros((batch + 1, 2), dtype=torch.int64, device=last.device)
        sums = sums.index_add(0, request, of_nodes)[:batch]
        untaken = sums[:, 1:] > 0
        if verified.finish is not None:  # a last token that was drafted was not rejected
            untaken = untaken & (verified.finish & Finish.DRAFTED == 0).unsqueeze(1)
        depth = torch.arange(1, self.counts.shape[0] // 2, device=last.device)
        tested = depth <= taken + untaken
        active = served.long().unsqueeze(1)
        steps = torch.cat([active, sums[:, :1], active * tree.max_depth, tested, depth <= taken], 1)
        self.counts += steps.sum(0)
        if slots is not None and self.slot_counts is not None:
            there = (slots >= 0) & (slots < self.slot_counts.shape[0])
            self.slot_counts.index_add_(0, torch.where(there, slots, 0), steps * there[:, None])


def _statistics(counts: list[int]) -> AcceptanceStats:
    """Of one line of counts."""
    steps, drafted, passes, *rest = counts
    depths = len(rest) // 2
    return AcceptanceStats(steps, drafted, passes, tuple(rest[:depths]), tuple(rest[depths:]))
