# SPDX-License-Identifier: Apache-2.0
"""Drafts from what other requests wrote: an index of running and finished texts, and of corpora."""

from __future__ import annotations

import importlib
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import (
    INTEGERS,
    bad_type,
    bad_value,
    check_dim,
    check_dtype,
    check_int,
    check_ints,
    check_tensor,
    check_type,
    check_values,
    what,
)
from .._ops import backends
from .ngram import TRUST, NgramTree, as_tree, check_tree

_DTYPES = {np.dtype(np.uint16): 0, np.dtype(np.int32): 1, np.dtype(np.uint32): 2, np.dtype(np.int64): 3}
_FORMAT = "specdec_kernels.SuffixIndex 1"
_TABLES = ("requests", "names", "sizes", "tokens")


class SuffixIndex:
    """What followed, in any text, wherever the last tokens of a request were written before.

    A text belongs to a request and grows with it. When the request ends, its text stays and serves others,
    until the memory is needed or it is removed. Corpora are texts that do not change. Texts and corpora lie
    in namespaces; a request writes to one, and sees those that it names. Everything is on the host.

    A request's last tokens are looked up as runs of 12, 5 and 2 tokens, the longest first, and in each case
    at the most recent `candidates` places. Matches are then measured, up to 64 tokens.

    Args:
        max_bytes: bound of the memory for texts, at least 2**20. If running requests need more, finished
            texts are removed, the oldest first. Corpora do not count.

    Raises:
        ValueError: a bound that is too small.
        BackendUnavailable: the native core is not there.

    Notes:
        A running text takes about 40 bytes a token, and a corpus 18 to 24 beside its own tokens. The work of
        a draft is bounded by `candidates`, the number of namespaces and corpora that a request sees, and
        `max_nodes`, whatever the texts are. One thread may write while others draft; calls release the GIL.
        Drafts depend on what other requests wrote, and so does their timing: give tenants that must not
        learn of each other namespaces of their own. Nodes are `POINT`. Under the rule `"match"` the text that
        is written does not depend on them.

    Example:
        >>> index = SuffixIndex()
        >>> index.add(1, [5, 6, 7, 8, 9])
        >>> index.finish(1)
        >>> index.add(2, [4, 6, 7])
        >>> tree, scores = index.draft([2], max_nodes=3)
        >>> tree.tokens.tolist(), [round(chance, 2) for chance in scores.exp()[0].tolist()]
        ([7, 8, 9], [1.0, 0.5, 0.32])
    """

    def __init__(self, *, max_bytes: int = 2**30) -> None:
        max_bytes = check_int("SuffixIndex", "max_bytes", max_bytes, 2**20)
        backends.load("cpu", "ngram_tree", "cpu", ())
        core: Any = importlib.import_module("specdec_kernels.cpu._native")
        self._native = core.SuffixIndex(max_bytes)
        self._corpora: dict[int, Any] = {}  # keeps their memory
        self._lowest = 0  # of all requests so far

    def add(
        self,
        request: int,
        tokens: Tensor | Sequence[int] = (),
        *,
        namespace: str = "",
        reads: Iterable[str] | None = None,
    ) -> None:
        """Begin the text of a request.

        Args:
            request: a number that no other text in the index has.
            tokens: [L] integers >= 0, what is known of the text, e.g. the prompt.
            namespace: where it is written.
            reads: the namespaces that its drafts come from; default: its own alone.

        Raises:
            ValueError: a request that is there already, tokens out of range, no room.
            TypeError: wrong types.
        """
        request = check_int("SuffixIndex.add", "request", request)
        check_type("SuffixIndex.add", "namespace", namespace, str, "a str")
        names = [namespace] if reads is None else _names("SuffixIndex.add", "reads", reads)
        row = _integers("SuffixIndex.add", "tokens", tokens)
        _call("SuffixIndex.add", self._native.add, request, namespace, names)
        try:
            self._extend("SuffixIndex.add", [request], row[None], [row.shape[0]])
        except Exception:
            self._native.remove(request)
            raise
        self._lowest = min(self._lowest, request)

    def extend(
        self,
        requests: Tensor | Sequence[int],
        tokens: Tensor,
        num_tokens: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Append new tokens to running texts, as `Verified.tokens` and `Verified.num_tokens` have them.

        Args:
            requests: [B], distinct.
            tokens: [B, W] integers >= 0.
            num_tokens: [B], how many of each row are appended, default W.

        Raises:
            ValueError: unknown or finished requests, wrong shapes, tokens out of range, or texts of running
                requests that need more than `max_bytes`. Nothing has changed then.
            TypeError: wrong dtypes.

        Notes:
            Tensors on a device are copied to the host, which waits for them.
        """
        check_dtype("SuffixIndex.extend", "tokens", tokens, INTEGERS)
        check_dim("SuffixIndex.extend", "tokens", tokens, 2, "[B, W]")
        check_values("SuffixIndex.extend", "tokens", tokens)
        sizes = [tokens.shape[1]] * tokens.shape[0] if num_tokens is None else num_tokens
        self._extend("SuffixIndex.extend", requests, tokens, sizes)

    def finish(self, request: int) -> None:
        """The request has ended: its text stays as long as there is room. Raises `ValueError` if it is not
        running."""
        request = check_int("SuffixIndex.finish", "request", request)
        _call("SuffixIndex.finish", self._native.finish, request)

    def remove(self, request: int) -> None:
        """Remove the text of a request, running or finished, exactly: no draft comes from it any more. Raises
        `ValueError` if there is none."""
        request = check_int("SuffixIndex.remove", "request", request)
        _call("SuffixIndex.remove", self._native.remove, request)

    def load(self, tokens: str | os.PathLike[str] | np.ndarray[Any, Any], *, namespace: str = "") -> int:
        """Index a corpus.

        Args:
            tokens: [N] uint16, int32, uint32 or int64, or the path of a `.npy` file of such an array, which
                is mapped into memory and not read as a whole. Negative tokens are borders between documents.
                The array must not change while it is in the index.
            namespace: where it belongs.

        Returns:
            A number for `unload`.

        Raises:
            ValueError: another shape, 2**32 tokens or more, a file that is not such an array.
            TypeError: another dtype.
            OSError: a file that cannot be read.
        """
        operation = "SuffixIndex.load"
        check_type(operation, "namespace", namespace, str, "a str")
        array: Any = tokens
        if isinstance(tokens, (str, os.PathLike)):
            try:
                array = np.load(tokens, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                bad_value(
                    operation, "tokens", f"must be a file of NumPy's format .npy ({error})", str(tokens)
                )
        if not isinstance(array, np.ndarray) or array.dtype not in _DTYPES:
            bad_type(operation, "tokens", "must be an array of uint16, int32, uint32 or int64", what(array))
        if array.ndim != 1 or array.shape[0] >= 2**32 - 1:
            bad_value(operation, "tokens", "must have shape [N], N < 2**32 - 1", list(array.shape))
        array = np.ascontiguousarray(array)
        corpus = self._native.load(namespace, array.ctypes.data, _DTYPES[array.dtype], array.shape[0])
        self._corpora[corpus] = array
        return int(corpus)

    def unload(self, corpus: int) -> None:
        """Remove a corpus. Raises `ValueError` if there is none of this number."""
        corpus = check_int("SuffixIndex.unload", "corpus", corpus)
        _call("SuffixIndex.unload", self._native.unload, corpus)
        del self._corpora[corpus]

    def draft(
        self,
        requests: Tensor | Sequence[int],
        max_nodes: int,
        *,
        max_depth: int | None = None,
        candidates: int = 64,
        min_match: int = 2,
        trust: Sequence[float] = TRUST,
    ) -> NgramTree:
        """Draft trees of what followed the last tokens of texts elsewhere.

        A match of n tokens has the odds t / (1 - t) with t = `trust[n - 1]`, and those of matches that go on
        with the same token add up. Of m children a child gets the share odds / (m + odds of all children) of
        its parent's chance: the more ways a text went on, the likelier a new one. A single match gives its
        node the chance t, as in `ngram_tree`. The `max_nodes` likeliest nodes are kept, in the order of their
        chances. Since n grows along a continuation, long matches are drafted further. A continuation that
        reaches the end of the request's own text goes on with its own tokens.

        Args:
            requests: [B], in the index.
            max_nodes: number of nodes of a tree, the root included, >= 1.
            max_depth: largest depth of a tree, default `max_nodes - 1`.
            candidates: how many places are looked at for each run of tokens, namespace and corpus, >= 1.
            min_match: how many last tokens must be the same, >= 2.
            trust: in (0, 1], ascending, as for `ngram_tree`.

        Returns:
            `NgramTree`, on the host.

        Raises:
            ValueError: unknown requests, wrong numbers.

        Source: chances by counts: Oliaro et al. 2024, SuffixDecoding.
        """
        operation = "SuffixIndex.draft"
        max_nodes, max_depth, trust = check_tree(operation, max_nodes, max_depth, trust)
        candidates = check_int(operation, "candidates", candidates, 1)
        min_match = check_int(operation, "min_match", min_match, 2)
        if isinstance(requests, Tensor):
            ids = _integers(operation, "requests", requests).tolist()
        else:
            ids = check_ints(operation, "requests", requests, -(2**63))
        arrays = _call(
            operation, self._native.draft, torch.get_num_threads(), ids,
            max_nodes, max_depth, candidates, min_match, trust, request="requests",
        )  # fmt: skip
        tokens, parents, cu_nodes, kinds, scores = map(torch.from_numpy, arrays)
        return as_tree(tokens, parents, cu_nodes, kinds, scores, max_nodes, max_depth)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all texts into a file, in NumPy's format .npz with a checksum. Corpora are files of their own
        and are not written. Raises `OSError` if the file cannot be written."""
        _check_path("SuffixIndex.save", path)
        listed = self._native.list()
        rows = []
        for request, _, size, _ in listed:
            row = np.empty(size, dtype=np.int32)
            self._native.read(request, row.ctypes.data)
            rows.append(row)
        tables = {
            "requests": np.array([text[0] for text in listed], dtype=np.int64),
            "names": np.array([text[1] for text in listed], dtype=np.str_),
            "sizes": np.array([text[2] for text in listed], dtype=np.int64),
            "tokens": np.concatenate([np.empty(0, dtype=np.int32), *rows]),
        }
        with open(path, "wb") as file:
            np.savez(file, format=np.array(_FORMAT), checksum=np.array(_checksum(tables)), **tables)  # type: ignore[arg-type]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, max_bytes: int = 2**30) -> SuffixIndex:
        """An index with the texts of a file that `save` wrote, all of them finished, the oldest first.

        Raises:
            ValueError: a file of another kind, a damaged one, or one with more than `max_bytes` can hold.
            OSError: a file that cannot be read.
        """
        _check_path("SuffixIndex.open", path)
        max_bytes = check_int("SuffixIndex.open", "max_bytes", max_bytes, 2**20)
        tables = _read(path)
        index = cls(max_bytes=max_bytes)
        ends = np.cumsum(tables["sizes"])
        for request, name, begin, end in zip(
            tables["requests"].tolist(), tables["names"].tolist(), (ends - tables["sizes"]), ends, strict=True
        ):
            index.add(request, torch.from_numpy(tables["tokens"][begin:end].astype(np.int64)), namespace=name)
            index.finish(request)
        if len(index) < len(ends):
            bad_value("SuffixIndex.open", "max_bytes", "must hold all texts of the file", max_bytes)
        return index

    @property
    def nbytes(self) -> int:
        """Bytes of the index, without the tokens of corpora."""
        return int(self._native.bytes())

    def __len__(self) -> int:
        """How many texts there are, running and finished."""
        return int(self._native.size())

    def __contains__(self, request: int) -> bool:
        """Whether there is a text of this request, running or finished."""
        return bool(self._native.contains(check_int("SuffixIndex.__contains__", "request", request)))

    def __repr__(self) -> str:
        return f"SuffixIndex(texts={len(self)}, corpora={len(self._corpora)}, nbytes={self.nbytes})"

    def _extend(self, operation: str, requests: Any, tokens: Tensor, num_tokens: Any) -> None:
        ids, sizes = (
            _integers(operation, "requests", requests),
            _integers(operation, "num_tokens", num_tokens),
        )
        rows = tokens.to("cpu", torch.int64).contiguous()
        count, width = rows.shape
        check_tensor(operation, "requests", ids, "[B]", (count,), (torch.int64,), ids.device)
        check_tensor(operation, "num_tokens", sizes, "[B]", (count,), (torch.int64,), ids.device)
        arguments = (ids.data_ptr(), count, rows.data_ptr(), width, sizes.data_ptr())
        _call(operation, self._native.extend, *arguments, request="requests")


class SuffixDrafter:
    """A `SuffixIndex` as a drafter of `generate`: it keeps the texts of a batch in the index, and drafts.

    Args:
        index: also of other drafters.
        max_nodes: number of nodes of a tree, the root included.
        namespace, reads: as of `SuffixIndex.add`.
        max_depth, candidates, min_match: as of `SuffixIndex.draft`.

    Notes:
        The rows of a batch are told apart by their texts: a row that does not continue the text of the call
        before is another request, and the one before is finished. Requests have numbers below 0.

    Example:
        >>> index = SuffixIndex()
        >>> index.add(1, [5, 6, 7, 8, 9])
        >>> drafter = SuffixDrafter(index, max_nodes=3)
        >>> drafter(torch.tensor([[4, 6, 7]]), torch.tensor([3])).tree.tokens.tolist()
        [7, 8, 9]
    """

    def __init__(
        self,
        index: SuffixIndex,
        max_nodes: int = 16,
        *,
        namespace: str = "",
        reads: Iterable[str] | None = None,
        max_depth: int | None = None,
        candidates: int = 64,
        min_match: int = 2,
    ) -> None:
        check_type("SuffixDrafter", "index", index, SuffixIndex, "a SuffixIndex")
        check_type("SuffixDrafter", "namespace", namespace, str, "a str")
        self.index = index
        self.max_nodes = check_int("SuffixDrafter", "max_nodes", max_nodes, 1)
        if max_depth is not None:
            check_int("SuffixDrafter", "max_depth", max_depth, 0)
        check_int("SuffixDrafter", "candidates", candidates, 1)
        check_int("SuffixDrafter", "min_match", min_match, 2)
        self.options = {"max_depth": max_depth, "candidates": candidates, "min_match": min_match}
        self.namespace = namespace
        self.reads = None if reads is None else _names("SuffixDrafter", "reads", reads)
        self._rows: list[tuple[int, Tensor]] = []  # the request of each row, and its text

    def __call__(self, tokens: Tensor, lengths: Tensor) -> NgramTree:
        """Drafts for the texts [B, L] int64 of these lengths [B]."""
        rows = []
        for b, size in enumerate(lengths.tolist()):
            text = tokens[b, :size].cpu()
            request = self._continued(text)
            if request is None:
                request = self.index._lowest - 1
                self.index.add(request, text, namespace=self.namespace, reads=self.reads)
            rows.append((request, text))
        for request, _ in self._rows:
            self.index.finish(request)
        self._rows = rows
        options: Any = self.options
        return self.index.draft([request for request, _ in rows], self.max_nodes, **options)

    def reset(self, *batch: object) -> None:
        """The texts of the batch so far have ended; `generate` says so before another one."""
        for request, _ in self._rows:
            self.index.finish(request)
        self._rows = []

    def _continued(self, text: Tensor) -> int | None:
        """The request of the text that this one continues, whose new tokens are appended."""
        for place, (request, before) in enumerate(self._rows):
            size = before.shape[0]
            if size <= text.shape[0] and torch.equal(text[:size], before):
                self.index.extend([request], text[None, size:])
                del self._rows[place]
                return request
        return None


def _integers(operation: str, argument: str, values: Any) -> Tensor:
    """[B] int64 on the host."""
    if isinstance(values, Tensor):
        check_dtype(operation, argument, values, INTEGERS)
        check_dim(operation, argument, values, 1, "[B]")
        check_values(operation, argument, values)
        return values.to("cpu", torch.int64).contiguous()
    return torch.tensor(check_ints(operation, argument, values), dtype=torch.int64, device="cpu")


def _names(operation: str, argument: str, names: Any) -> list[str]:
    """Distinct namespaces."""
    if isinstance(names, (str, Tensor)) or not isinstance(names, Iterable):
        bad_type(operation, argument, "must be names in a list", what(names))
    listed = list(names)
    for name in listed:
        check_type(operation, argument, name, str, "of str")
    return list(dict.fromkeys(listed))


def _check_path(operation: str, path: object) -> None:
    if not isinstance(path, (str, os.PathLike)):
        bad_type(operation, "path", "must be a path", what(path))


def _call(operation: str, function: Any, *arguments: Any, request: str = "request") -> Any:
    """What a function of the core returns. Its errors are told in the name of the operation. `request`: the
    argument that has the requests."""
    try:
        return function(*arguments)
    except ValueError as error:
        message = re.sub(r"^request\b", request, str(error))
        raise ValueError(f"{operation}: {message}") from None


def _checksum(tables: dict[str, Any]) -> int:
    checksum = 0
    for name in _TABLES:
        table = np.ascontiguousarray(tables[name])
        checksum = zlib.crc32(f"{name} {table.dtype.str} {table.shape}".encode(), checksum)
        checksum = zlib.crc32(table.tobytes(), checksum)
    return checksum


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tables of a file, checked."""
    problem = "a file of another kind"
    try:
        with np.load(path, allow_pickle=False) as file:
            if "format" in file and str(file["format"]) == _FORMAT:
                tables = {name: file[name] for name in _TABLES}
                if int(file["checksum"]) == _checksum(tables):
                    return tables
                problem = "a damaged file"
    except OSError:
        raise
    except Exception as error:
        problem = f"a damaged file ({error})"
    return bad_value("SuffixIndex.open", "path", "must be a file that SuffixIndex.save wrote", problem)
