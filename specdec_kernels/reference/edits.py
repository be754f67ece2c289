# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, bans and forced tokens, on a whole row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._ops.calls import EditLogitsCall, EditTensors
from .path import tokens_to

OVERFLOW = 8


class Edits:
    """The edits of one request.

    Args:
        tensors: those of `EditTensors`.
        numbers: repetition, frequency, presence, and 1 if the latter two count the prompt.
        request: b.
        vocab_size: V.

    Attributes:
        status: `Status.OVERFLOW`, or 0.
    """

    def __init__(
        self, tensors: list[Tensor | None], numbers: list[float], request: int, vocab_size: int
    ) -> None:
        self.tensors, self.b, self.vocab_size = EditTensors(*tensors), request, vocab_size
        repetition, frequency, presence, self.with_prompt = numbers
        self.repetition = self._penalty("repetition", repetition)
        self.frequency = self._penalty("frequency", frequency)
        self.presence = self._penalty("presence", presence)
        self.status = 0
        slot = request if self.tensors.slots is None else int(self.tensors.slots[request])
        self.prompt, self.output = (torch.zeros(vocab_size, dtype=torch.int64) for _ in range(2))
        self.recent: list[int] = []
        if self.tensors.counts_recent is not None and 0 <= slot < self.tensors.counts_recent.shape[0]:
            self.recent = self.tensors.counts_recent[slot].tolist()
        self._count(slot)

    def _penalty(self, name: str, number: float) -> float:
        per_request = getattr(self.tensors, name)
        value = number if per_request is None else float(per_request[self.b])
        off = 1.0 if name == "repetition" else 0.0
        usable = math.isfinite(value) and (value > 0 or name != "repetition")
        return value if usable else off

    def _count(self, slot: int) -> None:
        tokens, prompt, output, sizes = self.tensors[:4]
        if tokens is None or prompt is None or output is None or sizes is None:
            return
        if not 0 <= slot < sizes.shape[0]:
            return
        size = int(sizes[slot])
        if size > tokens.shape[1]:
            self.status = OVERFLOW
            return
        for i, token in enumerate(tokens[slot, : max(size, 0)].tolist()):
            if 0 <= token < self.vocab_size:
                self.prompt[token] = max(int(prompt[slot, i]), 0)
                self.output[token] = max(int(output[slot, i]), 0)

    def row(self, row: Tensor, path: Sequence[int]) -> Tensor:
        """A row [V] after the tokens `path`, those of the node and its ancestors but the root, with the edits
        made. In float32, or in float64 if the row is."""
        row = row.detach().cpu()
        row = row if row.dtype == torch.float64 else row.float()
        forced = self._forced(len(path))
        if forced is not None:
            row = torch.full_like(row, -math.inf)
            row[forced] = 0.0
            return row
        return self._banned(self._biased(self._penalized(row, path)), path)

    def _penalized(self, row: Tensor, path: Sequence[int]) -> Tensor:
        if self.tensors.counts_tokens is None or self.status == OVERFLOW:
            return row
        repetition, frequency, presence = (
            torch.tensor(penalty, dtype=row.dtype)
            for penalty in (self.repetition, self.frequency, self.presence)
        )
        output = self.output.clone()
        for token in path:
            if 0 <= token < self.vocab_size:
                output[token] += 1
        seen = self.prompt + output > 0
        count = output + self.prompt if self.with_prompt else output
        row = torch.where(seen, torch.where(row > 0, row / repetition, row * repetition), row)
        row = torch.where(count > 0, row - frequency * count.to(row.dtype), row)
        return torch.where(count > 0, row - presence, row)

    def _biased(self, row: Tensor) -> Tensor:
        if self.tensors.bias_tokens is None or self.tensors.bias_values is None:
            return row
        bias: dict[int, Tensor] = {}
        values = self.tensors.bias_values[self.b].cpu().to(row.dtype)
        for token, value in zip(self.tensors.bias_tokens[self.b].tolist(), values, strict=True):
            if 0 <= token < self.vocab_size:
                bias[token] = bias[token] + value if token in bias else value
        row = row.clone()
        for token, value in bias.items():
            row[token] = row[token] + value if value != -math.inf else self._ban(row[token])
        return row

    def _banned(self, row: Tensor, path: Sequence[int]) -> Tensor:
        banned = self._bad(path)
        until = self.tensors.banned_until
        if self.tensors.banned_tokens is not None and (until is None or len(path) < int(until[self.b])):
            banned += self.tensors.banned_tokens[self.b].tolist()
        row = row.clone()
        for token in banned:
            if 0 <= token < self.vocab_size:
                row[token] = self._ban(row[token])
        return row

    @staticmethod
    def _ban(score: Tensor) -> Tensor:
        return score if score.isnan() else torch.full_like(score, -math.inf)

    def _bad(self, path: Sequence[int]) -> list[int]:
        """The last tokens of bad words whose other tokens were just written."""
        if self.tensors.bad_words is None:
            return []
        found, written = [], [*self.recent, *path]
        for *others, last in self.tensors.bad_words[self.b].tolist():
            while others and others[0] < 0:  # padding
                del others[0]
            text = written[len(written) - len(others) :] if len(others) <= len(written) else None
            if others == text and min(others, default=0) >= 0:
                found.append(last)
        return found

    def _forced(self, depth: int) -> int | None:
        if self.tensors.forced_tokens is None or depth >= self.tensors.forced_tokens.shape[1]:
            return None
        token = int(self.tensors.forced_tokens[self.b, depth])
        return token if 0 <= token < self.vocab_size else None


def edits_of(
    tensors: list[Tensor | None], numbers: list[float], request: int, vocab_size: int
) -> Edits | None:
    """Of a request; None if nothing is edited."""
    return Edits(tensors, numbers, request, vocab_size) if tensors else None


def edit_logits(call: EditLogitsCall) -> None:
    """Edit the rows, node by node."""
    *groups, rows, vocab_size = call.logits.shape
    for request, path, row in _nodes(call):
        if 0 <= row < rows * (groups[0] if groups else 1):
            scores = call.logits[row // rows, row % rows] if groups else call.logits[row]
            edits = Edits(call.edits, call.edit_numbers, request, vocab_size)
            scores.copy_(edits.row(scores, path))


def _nodes(call: EditLogitsCall) -> Iterator[tuple[int, list[int], int]]:
    """Request, path and row of every node."""
    if call.tokens is None or call.parents is None or call.cu_nodes is None:
        yield from ((b, [], b) for b in range(call.logits.shape[0]))
        return
    count = call.tokens.shape[0]
    ends = [min(max(end, 0), count) for end in call.cu_nodes.tolist()]
    for b, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        tokens, parents = call.tokens[start:end].tolist(), call.parents[start:end].tolist()
        for node in range(len(tokens)):
            row = start + node if call.target_rows is None else int(call.target_rows[start + node])
            yield b, tokens_to(tokens, parents, node), row
