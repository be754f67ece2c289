# SPDX-License-Identifier: Apache-2.0
"""The operators of PyTorch: schemas, fakes, and the call of a backend.

Each operation is one operator that fills tensors allocated by its caller. So there are no shapes to infer,
and the fakes are empty. The schema is made of the fields of the record in `calls`. Backends are modules with
a function per operation, which takes the record.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase
from typing import Any, ForwardRef

import torch
from torch import Tensor

from .._checks import check_name
from .._kept import traced
from . import backends, calls

_KINDS = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "list[Tensor]": "Tensor[]",
    "list[Tensor | None]": "Tensor?[]",
    "list[float]": "float[]",
    "bool": "bool",
    "float": "float",
    "int": "int",
    "str": "str",
    "SymInt": "SymInt",
}
_library = torch.library.Library("specdec_kernels", "DEF")


def _kinds_of(record: type[Any]) -> list[str]:
    """The types of the fields of a record, as they are written."""
    kinds = record.__annotations__.values()
    return [kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind for kind in kinds]


def schema(operation: str) -> str:
    """The operator's schema: `backend`, and the fields of its record in their order."""
    record, written, _ = calls.OPERATORS[operation]
    arguments, letters = ["str backend"], iter(ascii_lowercase)
    for name, kind in zip(record._fields, _kinds_of(record), strict=True):
        text = _KINDS[kind]
        if name in written:
            text = text.replace("Tensor", f"Tensor({next(letters)}!)")
        default = record._field_defaults.get(name, ...)
        arguments.append(f"{text} {name}" + ("" if default is ... else f"={default}"))
    return f"{operation}({', '.join(arguments)}) -> ()"


_PLAIN = frozenset((Tensor, type(None), list, float, int, bool, str))


def _is_plain(call: Any, lists: list[int]) -> bool:
    """Whether no tensor in a record, or in the lists at these places of it, is of a subclass."""
    if not _PLAIN.issuperset(map(type, call)):
        return False
    for place in lists:
        if not _PLAIN.issuperset(map(type, call[place])):
            return False
    return True


def _register(operation: str) -> Callable[[Any, str], None]:
    """Define an operator. Returns a function that calls it.

    Eager calls on plain tensors go directly to the backend. In a decoding loop every call starts from cold
    caches, and there the dispatcher costs as much as all checks of `verify` together. Tracers and special
    tensors (`torch.compile`, dispatch modes, fake and meta tensors, other subclasses) get the operator.
    """
    record, _, chosen_by = calls.OPERATORS[operation]
    places = [record._fields.index(name) for name in chosen_by]
    lists = [i for i, kind in enumerate(_kinds_of(record)) if kind.startswith("list[Tensor")]

    def rows(call: Any) -> list[Tensor]:
        given: list[Tensor] = []
        for place in places:
            value = call[place]
            if value is not None:
                given += value if type(value) is list else (value,)
        return given

    def serve(call: Any, given: list[Tensor], backend: str) -> None:
        getattr(backends.serving(backend, operation, given), operation)(call)

    def implementation(backend: str, *arguments: Any) -> None:
        call = record(*arguments)
        serve(call, rows(call), backend)

    def fake(backend: str, *arguments: Any) -> None:
        return None

    _library.define(schema(operation), tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(operation, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"specdec_kernels::{operation}", fake, lib=_library)
    operator = getattr(torch.ops.specdec_kernels, operation).default

    def run(call: Any, backend: str) -> None:
        check_name(operation, "backend", backend, backends.NAMES)
        if not traced() and _is_plain(call, lists):
            given = rows(call)
            if not given[0].is_meta:
                return serve(call, given, backend)
        operator(backend, *call)

    return run


verify = _register("verify")
sample = _register("sample")
edit_logits = _register("edit_logits")
count_tokens = _register("count_tokens")
sample_children = _register("sample_children")
ngram_draft = _register("ngram_draft")
ngram_tree = _register("ngram_tree")
select_nodes = _register("select_nodes")
update_budget = _register("update_budget")
tree_attention = _register("tree_attention")
commit_kv = _register("commit_kv")
commit_state = _register("commit_state")
replay_conv = _register("replay_conv")
replay_gated_delta = _register("replay_gated_delta")
replay_mamba2 = _register("replay_mamba2")


def commit_kv_by_table(call: calls.CommitKVCall, backend: str) -> None:
    """`commit_kv` of a backend that needs only the table, outside any tracer and without the dispatcher: to
    pass 64 caches through the dispatcher takes as long as to move a small batch."""
    backends.serving(backend, "commit_kv", (call.path,)).commit_kv(call)
