# SPDX-License-Identifier: Apache-2.0
"""Stands for llama-cpp-python 0.3.36: the calls that the example uses, over a memory of plain sets.

Batches that llama.cpp refuses are refused; `make test-llama-cpp` compares the two. The model of this memory
is a table. What it writes depends on every token that llama.cpp's attention would see.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

VOCAB = 24
TABLE = 2.0 * np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)


@dataclass
class Cell:
    position: int
    token: int
    seq_ids: set[int]


@dataclass
class Memory:
    n_seq_max: int
    cells: list[Cell] = field(default_factory=list)

    def of(self, seq_id: int) -> list[Cell]:
        return sorted((cell for cell in self.cells if seq_id in cell.seq_ids), key=lambda cell: cell.position)

    def extent(self, seq_id: int) -> tuple[int, int] | None:
        places = [cell.position for cell in self.of(seq_id)]
        return (places[0], places[-1]) if places else None

    def inside(self, seq_id: int, p0: int, p1: int) -> list[Cell]:
        last = p1 if p1 >= 0 else float("inf")
        return [cell for cell in self.of(seq_id) if max(p0, 0) <= cell.position < last]

    def forget(self) -> None:
        self.cells = [cell for cell in self.cells if cell.seq_ids]


def llama_memory_clear(memory: Memory, data: bool) -> None:
    memory.cells = []


def llama_memory_seq_rm(memory: Memory, seq_id: int, p0: int, p1: int) -> bool:
    for cell in memory.inside(seq_id, p0, p1):
        cell.seq_ids.discard(seq_id)
    memory.forget()
    return True


def llama_memory_seq_cp(memory: Memory, source: int, target: int, p0: int, p1: int) -> None:
    assert 0 <= source < memory.n_seq_max and 0 <= target < memory.n_seq_max
    for cell in memory.inside(source, p0, p1):
        cell.seq_ids.add(target)


def llama_memory_seq_keep(memory: Memory, seq_id: int) -> None:
    for cell in memory.cells:
        cell.seq_ids &= {seq_id}
    memory.forget()


def refusal(memory: Memory, rows: list[Cell]) -> str:
    """Why llama.cpp refuses this batch, as `llama_batch_allocr::init` of version 0.3.36 does."""
    for seq_id in set().union(*(row.seq_ids for row in rows)):
        if not 0 <= seq_id < memory.n_seq_max:
            return f"sequence {seq_id} of {memory.n_seq_max}"
        places = [row.position for row in rows if seq_id in row.seq_ids]
        stored = memory.extent(seq_id)
        if stored and min(places) != stored[1] + 1:
            return f"sequence {seq_id} goes on at {min(places)} after {stored[1]}"
        if set(places) != set(range(min(places), max(places) + 1)) or places != sorted(places):
            return f"the positions of sequence {seq_id} are {places}"
    for row in rows:
        if len({memory.extent(seq_id) for seq_id in row.seq_ids}) > 1:
            return f"{row.seq_ids} are read as one and hold different positions"
    return ""


def llama_decode(context: SimpleNamespace, batch: SimpleNamespace) -> int:
    rows = [
        Cell(batch.pos[i], batch.token[i], {batch.seq_id[i][j] for j in range(batch.n_seq_id[i])})
        for i in range(batch.n_tokens)
    ]
    context.refusal = refusal(context.memory, rows)
    if context.refusal:
        return -1
    context.memory.cells += rows
    context.calls += 1
    logits = []
    for i, row in enumerate(rows):
        if not batch.logits[i]:
            continue
        # The mask of attention is that of the first sequence of a token.
        seen = [c for c in context.memory.of(batch.seq_id[i][0]) if c.position <= row.position]
        assert [cell.position for cell in seen] == list(range(row.position + 1))
        weights = 0.6 ** (row.position - np.arange(len(seen)))
        logits.append((weights[:, None] * TABLE[[cell.token for cell in seen]]).sum(0))
    flat = np.concatenate(logits).astype(np.float32)
    # The memory of earlier logits is overwritten, as llama.cpp overwrites it.
    for i, value in enumerate(flat):
        context.logits[i] = value
    return 0


def llama_get_logits(context: SimpleNamespace):
    return ctypes.cast(context.logits, ctypes.POINTER(ctypes.c_float))


def llama_init_from_model(model: object, params: SimpleNamespace) -> SimpleNamespace:
    assert params.kv_unified, "copying a part of a sequence needs one memory for all"
    memory, logits = Memory(params.n_seq_max), (ctypes.c_float * (params.n_batch * VOCAB))()
    return SimpleNamespace(memory=memory, logits=logits, refusal="", calls=0)


def llama_batch_init(n_tokens: int, embd: int, n_seq_max: int) -> SimpleNamespace:
    names = ("token", "pos", "n_seq_id", "logits")
    arrays = {name: [None] * n_tokens for name in names}
    return SimpleNamespace(n_tokens=0, seq_id=[[None] * n_seq_max for _ in range(n_tokens)], **arrays)


def llama_backend_init() -> None: ...


def llama_model_default_params() -> SimpleNamespace:
    return SimpleNamespace()


def llama_context_default_params() -> SimpleNamespace:
    return SimpleNamespace(
        n_ctx=512, n_batch=512, n_seq_max=1, kv_unified=False, n_threads=1, n_threads_batch=1
    )


def llama_model_load_from_file(path: bytes, params: SimpleNamespace) -> object:
    return path


def llama_get_memory(context: SimpleNamespace) -> Memory:
    return context.memory


def llama_model_get_vocab(model: object) -> object:
    return model


def llama_vocab_n_tokens(vocab: object) -> int:
    return VOCAB
