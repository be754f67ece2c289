# SPDX-License-Identifier: Apache-2.0
"""Trees of prompt lookup, read by llama.cpp: `python -m examples.llama_cpp MODEL.gguf`.

Every path of a tree is a sequence of llama.cpp's memory, which holds a token once for all of its sequences.
"""

import ctypes
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import llama_cpp as llama  # with `python -m`; `python examples/llama_cpp.py` would find this file
import torch
from torch import Tensor

import specdec_kernels as sdk

NODES = 16  # of a tree, the root included
PROMPT = """<|im_start|>user
Correct the spelling mistakes: We are sory to hear that the kettle you bought from us in Febuary no longer
switches off by itself. Please send it back to the adress below, in its original box if you have it.<|im_end|>
<|im_start|>assistant
"""


def sequences(parents: list[int]) -> list[list[int]]:
    """The seq_ids of every node. A leaf's number is the sequence of its path, from the root on."""
    below: list[list[int]] = [[] for _ in parents]
    for number, leaf in enumerate(sorted(set(range(len(parents))) - set(parents))):
        node = leaf
        while node >= 0:
            below[node].append(number)
            node = parents[node]
    return below


def rollback(kept: int, length: int) -> list[tuple]:
    """Calls of llama_memory_seq_*: the first `length` positions of one sequence are left, as sequence 0."""
    calls: list[tuple] = [("keep", kept), ("rm", kept, length, -1)]
    return calls + [("cp", kept, 0, -1, -1), ("keep", 0)] if kept else calls


class Model:
    def __init__(self, path: str, slots: int = 2048, threads: int = 1):
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = slots
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max, params.kv_unified = NODES, True  # one memory: copying a sequence moves nothing
        self.context = llama.llama_init_from_model(self.model, params)
        if self.context is None:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(slots, 0, NODES)
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.vocab_size = llama.llama_vocab_n_tokens(self.vocab)

    def change(self, calls: list[tuple]) -> None:
        for name, *arguments in calls:
            if getattr(llama, f"llama_memory_seq_{name}")(self.memory, *arguments) is False:
                raise RuntimeError("this model's memory cannot be rolled back")  # that of recurrent layers

    def read(self, tokens: list[int], positions: list[int], seq_ids: list[list[int]], rows: int) -> Tensor:
        """Logits [rows, V] of the last tokens in llama.cpp's own memory, which the next call overwrites."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, ids) in enumerate(zip(tokens, positions, seq_ids, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, len(ids)
            for j, seq_id in enumerate(ids):
                batch.seq_id[i][j] = seq_id
            batch.logits[i] = i >= len(tokens) - rows
        if (code := llama.llama_decode(self.context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        array = ctypes.POINTER(ctypes.c_float * (rows * self.vocab_size))
        floats = ctypes.cast(llama.llama_get_logits(self.context), array).contents
        return torch.frombuffer(floats, dtype=torch.float32).view(rows, self.vocab_size)

    def read_prompt(self, tokens: list[int]) -> None:
        llama.llama_memory_clear(self.memory, False)
        if tokens:
            self.read(tokens, list(range(len(tokens))), [[0]] * len(tokens), rows=1)


def step_costs(model: Model, prefix: int = 256, rounds: int = 5, clock=time.perf_counter) -> dict[int, float]:
    """The median time of a step by its number of rows, after `prefix` tokens."""
    times: dict[int, list[float]] = {rows: [] for rows in (1, 2, 3, 4, 6, 8, 12, 16)}
    model.read_prompt([0] * prefix)
    for _ in range(rounds):
        for rows, values in times.items():
            start = clock()
            model.read([0] * rows, list(range(prefix, prefix + rows)), [[0]] * rows, rows)
            values.append(clock() - start)
            model.change(rollback(0, prefix))
    return {rows: statistics.median(values) for rows, values in times.items()}


class Step(NamedTuple):
    tokens: list[int]  # accepted ones and the next
    rows: int  # that llama.cpp read, which are the tree's nodes
    leaves: int


def decode(model: Model, prompt: list[int], budget, law, seed=0, nodes=NODES, branches=4) -> Iterator[Step]:
    """Steps without end. With one node they are plain decoding, with one branch they verify chains."""
    text, calibration, seeds = list(prompt), sdk.Calibration(), torch.tensor([seed])
    model.read_prompt(text[:-1])  # the last token is always read with the drafts
    while True:
        length = torch.tensor([len(text)])
        found, scores = sdk.ngram_tree(torch.tensor([text]), length, nodes, branches=branches, cyclic=True)
        chances, parents = scores.exp()[0].tolist(), found.parents.tolist()
        [kept] = budget.choose([calibration.believe(chances, parents)])
        parents = [kept.index(parents[node]) if node else -1 for node in kept]
        chances = [chances[node] for node in kept]
        tree = sdk.DraftTree.from_parents(found.tokens[kept][None], torch.tensor([parents]))

        seq_ids = sequences(parents)
        model.change([("cp", 0, leaf, -1, -1) for leaf in seq_ids[0][1:]])  # all begin with the text so far
        positions = (tree.depths + len(text) - 1).tolist()
        logits = model.read(tree.tokens.tolist(), positions, seq_ids, rows=len(kept))
        verified = sdk.verify(logits, tree, sampling=law, rule="match", seeds=seeds, positions=length)
        count = int(verified.num_tokens)
        path, tokens = verified.path[0, :count].tolist(), verified.tokens[0, :count].tolist()
        text += tokens
        model.change(rollback(seq_ids[path[-1]][0], len(text) - 1))  # without what was rejected
        budget, calibration = budget.after(len(kept), [count]), calibration.after(chances, parents, path)
        yield Step(tokens, len(kept), len(seq_ids[0]))


def tokenize(model: Model, text: str) -> list[int]:
    tokens, data = (llama.llama_token * len(text.encode()))(), text.encode()
    return tokens[: llama.llama_tokenize(model.vocab, data, len(data), tokens, len(tokens), False, True)]


def main() -> None:
    model = Model(sys.argv[1])
    prompt, end = tokenize(model, PROMPT), llama.llama_vocab_eos(model.vocab)
    budget, piece = sdk.Budget(step_costs(model)), ctypes.create_string_buffer(256)
    for nodes in (1, NODES):
        start, tokens, steps = time.perf_counter(), [], 0
        for step in decode(model, prompt, budget, sdk.SamplingParams(temperature=0.0), nodes=nodes):
            tokens, steps = tokens + step.tokens, steps + 1
            if end in tokens or steps == 200:
                break
        rate = len(tokens) / (time.perf_counter() - start)
        for token in tokens:
            size = llama.llama_token_to_piece(model.vocab, token, piece, len(piece), 0, False)
            print(piece.raw[:size].decode(errors="replace"), end="")
        print(f"\n  {nodes} nodes: {len(tokens)} tokens in {steps} steps, {rate:.1f} a second\n")


if __name__ == "__main__":
    main()
