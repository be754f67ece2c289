# SPDX-License-Identifier: Apache-2.0
"""A grammar that a test can write down: a finite automaton over tokens, and a matcher of it."""

from __future__ import annotations

import random

import torch

END = -2  # a state behind which nothing comes
Table = tuple[tuple[int, ...], ...]  # by state and token the next state, -1 where the token is refused


class Toy:
    """A matcher of an automaton that begins in state 0, and a record of what was asked of it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.states = [0]
        self.filled = 0

    def accept_token(self, token_id):
        assert not self.is_terminated()
        after = self.table[self.states[-1]][token_id]  # an IndexError for tokens that no one may ask about
        if after != -1:
            self.states.append(after)
        return after != -1

    def rollback(self, num_tokens):
        assert 0 < num_tokens < len(self.states)
        del self.states[-num_tokens:]

    def fill_next_token_bitmask(self, bitmask, index):
        assert not self.is_terminated()
        self.filled += 1
        bitmask[index] = packed(self.allowed())

    def is_terminated(self):
        return self.states[-1] == END

    def allowed(self) -> list[bool]:
        return [after != -1 for after in self.table[self.states[-1]]]


def packed(allowed) -> torch.Tensor:
    """[ceil(V / 32)] int32 of [V] bools."""
    words = [0] * (-(-len(allowed) // 32))
    for token, bit in enumerate(allowed):
        words[token // 32] |= bool(bit) << token % 32
    return torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32)


def random_table(seed: int, vocab: int, states: int = 3, ends: float = 0.15, refused: float = 0.45) -> Table:
    """An automaton in which every state allows a token."""
    draw = random.Random(seed)
    table = []
    for _state in range(states):
        row = [draw.randrange(states) for _ in range(vocab)]
        row = [-1 if draw.random() < refused else END if draw.random() < ends else after for after in row]
        if max(row) == -1 and END not in row:
            row[draw.randrange(vocab)] = draw.randrange(states)
        table.append(tuple(row))
    return tuple(table)


def run(table: Table, tokens) -> int:
    """The state after the tokens; -1 where one is refused or comes after the end."""
    state = 0
    for token in tokens:
        state = table[state][token] if state >= 0 and 0 <= token < len(table[0]) else -1
    return state
