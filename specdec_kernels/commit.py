# SPDX-License-Identifier: Apache-2.0
"""Committing caches after verification: kept rows move to the slots right after the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _debug, _ops
from ._cache_table import SLOT_DIM, cache_table, row_dims
from ._checks import (
    bad_type,
    bad_value,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_list,
    check_name,
    check_shape,
    check_tensor,
    check_type,
    name_of,
)
from ._kept import traced
from ._memory import check_distinct, check_no_overlap, check_row
from ._ops import backends
from ._ops.calls import CommitKVCall
from .tree import DraftTree
from .verification import Verified


class Committed(NamedTuple):
    """Lengths and pages of the requests after `commit_kv`."""

    lengths: Tensor
    """[B] int32: new committed lengths, `prefix_lens + num_accepted + 1`."""
    pages_kept: Tensor
    """[B] int32: number of pages that are still needed; later pages of the block table are free."""


class CachePlan:
    """Paged caches, checked once, with a table of their addresses.

    Build it when the caches are allocated and pass it to every `commit_kv`. A step then checks no cache.

    Args:
        caches: tensors of any dtypes on one device, e.g. keys and values of every layer, an MLA pool, those
            of a draft model. `"NHD"`: [pages, page_size, ...] with any trailing shape; `"HND"`: [pages, Hkv,
            page_size, ...]. Pages and slots may have any strides; the bytes of a row (in HND, of one head's
            row) must be contiguous. All share the block table; their numbers of pages may differ.
        page_size: number of slots of a page.
        layout: "NHD" or "HND".

    Raises:
        ValueError: wrong shapes, rows that are not contiguous, a cache listed twice or that overlaps itself.
        TypeError: not tensors, or on different devices; a `page_size` that is not an int.

    Notes:
        Keeps the tensors alive. Their memory must not be moved (`resize_`, `set_`) while the plan is in use.

    Example:
        >>> plan = CachePlan([torch.zeros(4, 16, 2, 8), torch.zeros(4, 16, 2, 8)], page_size=16)
        >>> plan.table.shape, plan.page_size, plan.layout
        (torch.Size([2, 7]), 16, 'NHD')
        >>> plan
        CachePlan(2 caches, page_size=16, layout='NHD', device=cpu)
    """

    def __init__(self, caches: Sequence[Tensor], *, page_size: int, layout: str = "NHD") -> None:
        self.caches: list[Tensor] = check_list("CachePlan", "caches", caches, "tensors")
        self.page_size: int = check_int("CachePlan", "page_size", page_size, 1)
        self.layout = layout
        check_caches("CachePlan", self.caches, self.page_size, layout)
        self.table: Tensor = cache_table(self.caches, layout)
        """[len(caches), 7] int64 on the caches' device, see `cache_table.FIELDS`."""

    def __repr__(self) -> str:
        count = f"{len(self.caches)} cache{'' if len(self.caches) == 1 else 's'}"
        device = self.caches[0].device
        return f"CachePlan({count}, page_size={self.page_size}, layout={self.layout!r}, device={device})"


def commit_kv(
    caches: CachePlan | Sequence[Tensor],
    verified: Verified | Tensor,
    tree: DraftTree,
    block_table: Tensor,
    prefix_lens: Tensor,
    *,
    page_size: int | None = None,
    layout: str | None = None,
    new: Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> Committed:
    """Move the rows of the root and the accepted nodes to the slots right after the prefix, in place.

    Node `path[j]` of request b, j = 0, 1, ..., moves from slot `prefix_lens[b] + path[j]` to slot
    `prefix_lens[b] + j`, in every cache of the list. Slot s of a request is row `s % page_size` of page
    `block_table[b, s // page_size]`. Rows are moved as bytes, never converted. With `new` the rows come from
    there instead.

    Args:
        caches: a `CachePlan`, or a list of tensors as for `CachePlan`, which is then checked in every call.
        verified: what `verify` returned, or its path, [B, max_depth + 1] int32: the root, accepted nodes in
            order, then -1.
        tree: the drafted tree.
        block_table: [B, P] int32, the pages of each request.
        prefix_lens: [B] int32, committed positions before the root.
        page_size: slots of a page; may be left out with a plan.
        layout: "NHD" (the default) or "HND", see `CachePlan`; may be left out with a plan.
        new: rows of the tree that are not yet in the caches: for each cache a tensor [R, ...] of its dtype
            and row shape ([R, Hkv, D] in both layouts). Only kept rows are written, the root's among them.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `Committed`. A request whose path is all -1 (a padding slot) keeps its length.

    Raises:
        ValueError: wrong shapes, rows that are not contiguous; before anything has moved.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises with the device. Moves at most `2 * kept rows * row bytes` per cache, and nothing
        for a node that is in its place already (`path[j] == j`). If a drafter numbers its likeliest path
        first, most steps move nothing. No temporary is needed: kept paths ascend, so no row is overwritten
        before it has moved. Slots of other requests, and rows beyond the kept ones, keep their bytes. A path
        ends at the first entry that is no node or not larger than its predecessor. Rows whose slot is outside
        the block table or whose page is outside the cache are left out. A request with a negative prefix
        keeps nothing. `SPECDEC_DEBUG=1` in the environment makes all three raise `ValueError`, and
        synchronises.

    Example:
        >>> cache = torch.arange(8.0).view(2, 4, 1)  # two pages of four slots, one number each
        >>> tree = DraftTree.from_parents(torch.tensor([[-1, 5, 6, 7]]), torch.tensor([[-1, 0, 0, 2]]))
        >>> path = torch.tensor([[0, 2, 3]], dtype=torch.int32)
        >>> pages, prefix = torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
        >>> commit_kv([cache], path, tree, pages, prefix, page_size=4)
        Committed(lengths=tensor([5], dtype=torch.int32), pages_kept=tensor([2], dtype=torch.int32))
        >>> cache.flatten().tolist()  # slots 2, 4, 5 of the request moved to 2, 3, 4
        [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]
    """
    plan: CachePlan | None = None
    if isinstance(caches, CachePlan):
        if page_size is not None and check_int("commit_kv", "page_size", page_size) != caches.page_size:
            bad_value("commit_kv", "page_size", f"must be the plan's, {caches.page_size}", page_size)
        if layout is not None:
            check_name("commit_kv", "layout", layout, SLOT_DIM)
        if layout not in (None, caches.layout):
            bad_value("commit_kv", "layout", f"must be the plan's, {caches.layout!r}", repr(layout))
        plan, tensors, page_size, layout = caches, caches.caches, caches.page_size, caches.layout
    else:
        if page_size is None:
            bad_value("commit_kv", "page_size", "must be an int >= 1 without a CachePlan", None)
        page_size = check_int("commit_kv", "page_size", page_size, 1)
        layout = "NHD" if layout is None else layout
        tensors = check_list("commit_kv", "caches", caches, "tensors")
        check_caches("commit_kv", tensors, page_size, layout)
    path, device = check_path("commit_kv", verified, tree), tensors[0].device
    check_device("commit_kv", "verified", path, device)
    batch = tree.batch_size
    check_dtype("commit_kv", "block_table", block_table, (torch.int32,))
    check_dim("commit_kv", "block_table", block_table, 2, "[B, P]")
    shape = (batch, block_table.shape[1])
    check_tensor("commit_kv", "block_table", block_table, "[B, P]", shape, (torch.int32,), device)
    check_tensor("commit_kv", "prefix_lens", prefix_lens, "[B]", (batch,), (torch.int32,), device)
    if new is not None:
        new = check_list("commit_kv", "new", new, "tensors")
        _check_new(new, tensors, layout, tree.tokens.shape[0])
    if _debug.enabled():
        pages = min(cache.shape[0] for cache in tensors)
        in_cache = new is None
        _debug.check_kept(
            "commit_kv", path, block_table, prefix_lens, page_size, pages, in_cache=in_cache
        )  # fmt: skip
    out = Committed(torch.empty_like(prefix_lens), torch.empty_like(prefix_lens))
    by_table = plan is not None and _table_suffices(device, backend)
    call = CommitKVCall(
        caches=[] if by_table else tensors,
        table=None if plan is None else plan.table,
        new=new or [],
        path=path,
        cu_nodes=tree.cu_nodes.contiguous(),
        rows=tree.tokens.shape[0],
        block_table=block_table.contiguous(),
        prefix_lens=prefix_lens.contiguous(),
        page_size=page_size,
        layout=layout,
        out_lengths=out.lengths,
        out_pages_kept=out.pages_kept,
    )
    (_ops.commit_kv_by_table if by_table else _ops.commit_kv)(call, backend)
    return out


def _table_suffices(device: torch.device, backend: str) -> bool:
    """Whether the backend needs only the plan's table. A tracer needs the caches, because they are written,
    and may pass copies of them."""
    if traced():
        return False
    name = backends.choose("commit_kv", device.type) if backend == "auto" else backend
    return name in ("cpu", "triton")


def check_path(operation: str, verified: Verified | Tensor, tree: DraftTree) -> Tensor:
    """The path of `verified`, checked and contiguous."""
    check_type(operation, "tree", tree, DraftTree, "a DraftTree")
    path = verified.path if isinstance(verified, Verified) else verified
    shape = (tree.batch_size, tree.max_depth + 1)
    device = tree.cu_nodes.device
    check_tensor(operation, "verified", path, "[B, max_depth + 1]", shape, (torch.int32,), device)
    return path.contiguous()


def check_caches(operation: str, caches: Sequence[Tensor], page_size: int, layout: str) -> None:
    """Raise unless these are paged caches whose rows can be moved as bytes."""
    check_name(operation, "layout", layout, SLOT_DIM)
    if not caches:
        bad_value(operation, "caches", "must hold at least one tensor", "none")
    slot = SLOT_DIM[layout]
    symbols = "[pages, page_size, ...]" if slot == 1 else "[pages, Hkv, page_size, ...]"
    for i, cache in enumerate(caches):
        name = f"caches[{i}]"
        check_type(operation, name, cache, Tensor, "a tensor")
        check_device(operation, name, cache, caches[0].device)
        if cache.dim() <= slot or cache.shape[slot] != page_size:
            rule = f"must have shape {symbols} with page_size = {page_size}"
            bad_value(operation, name, rule, list(cache.shape))
        check_row(operation, name, cache, row_dims(cache, layout))
        check_no_overlap(operation, name, cache)
    check_distinct(operation, "caches", caches)


def _check_new(new: Sequence[Tensor], caches: Sequence[Tensor], layout: str, rows: int) -> None:
    if len(new) != len(caches):
        bad_value("commit_kv", "new", f"must hold a tensor for each of {len(caches)} caches", len(new))
    slot = SLOT_DIM[layout]
    for i, (fresh, cache) in enumerate(zip(new, caches, strict=True)):
        name = f"new[{i}]"
        check_type("commit_kv", name, fresh, Tensor, "a tensor")
        if fresh.dtype != cache.dtype:
            rule = f"must have the dtype of caches[{i}], {name_of(cache.dtype)}"
            bad_type("commit_kv", name, rule, name_of(fresh.dtype))
        check_device("commit_kv", name, fresh, cache.device)
        shape = (rows, *cache.shape[1:slot], *cache.shape[slot + 1 :])
        check_shape("commit_kv", name, fresh, "[R, ...] with the cache's row", shape)
        check_row("commit_kv", name, fresh, range(slot, fresh.dim()))
