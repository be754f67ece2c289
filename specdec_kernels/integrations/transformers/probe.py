# SPDX-License-Identifier: Apache-2.0
"""The probe: a few small forwards that find out how a model can be served."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...tree import DraftTree, Proposal
from .caches import Alone, Together
from .layers import croppable, restored, snapshot, unknown
from .model import Target

NARROW = 3  # what windows are set to for a probe, so that its short texts cross them
EXACT = 1e-4  # of the spread of the logits: how far right models may be off in float32
COARSE = 1e-2  # of the spread: where two plain readings differ by more, nothing can be told apart


class Verdict(NamedTuple):
    """What `generate` does with a model, and why.

    Attributes:
        serves: "trees": all requests in one forward, drafts of any shape. "chains": all requests in one
            forward, drafts that are chains. "one by one": a forward for each request, chains. "token by
            token": a forward for each token behind a prompt, so that no draft pays. "whole text": one for
            each request, which reads the whole text, since no cache can be used. "refused".
        reason: why the model is not served as "trees"; empty for "trees".
        forwards: number of forwards of the probe, at most 8 over at most 16 tokens per row.
        proved: False if even plain readings differ by too much to compare anything with them.
        cached: False if the model keeps no cache at all.
    """

    serves: str
    reason: str
    forwards: int
    proved: bool = True
    cached: bool = True

    def __str__(self) -> str:
        return f"{self.serves}: {self.reason}" if self.reason else self.serves


_VERDICTS: dict[tuple[Any, ...], tuple[Verdict, bool]] = {}
_PROBING = threading.RLock()  # a probe narrows the windows of a configuration that threads may share


def explain_model(model: Any) -> Verdict:
    """How `generate` serves a model: with trees, with chains, one request at a time, or not at all.

    The logits of draft nodes and of texts of different lengths are compared with those of the same paths
    read plainly, before and after a rejected draft. Windows of attention are narrowed for the time of the
    probe, so that its short texts cross them. The verdict is kept for the class of the model, its whole
    configuration, kind of attention, dtype and device.

    Args:
        model: a causal language model of the transformers library.

    Returns:
        `Verdict`.

    Raises:
        TypeError: not a causal language model.
        ValueError: its weights are on no device.

    Notes:
        Deterministic, but for models whose forward is not. Probes of several threads wait for each other;
        nothing else may read the model meanwhile.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2)
        >>> print(explain_model(GPT2LMHeadModel(config)))
        trees
    """
    target = Target(model)
    with torch.inference_mode(), target.reading():
        return verdict(target)


def verdict(target: Target) -> Verdict:
    """`explain_model` of a target that reads in evaluation mode already."""
    with _PROBING:
        model = target.model
        whole = hashlib.sha256(repr(sorted(model.config.to_dict().items(), key=str)).encode()).hexdigest()
        key = (type(model), whole, target.attention, model.dtype, target.device)
        if key not in _VERDICTS:
            _VERDICTS[key] = (_Probe(target).run(), target.plain_cache)
        found, target.plain_cache = _VERDICTS[key]
        return found


class _Probe:
    """Two requests: one of six tokens, and one of its first three."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.forwards = 0
        self.prefilled: Any = None  # the cache of both prompts
        tokens = _tokens(target)
        self.path = tokens[:10]  # the longer request's prompt of 6, and the path that is accepted
        self.other = torch.cat([tokens[:6], tokens[10:14]])  # the same prompt, another path

    def run(self) -> Verdict:
        with _narrowed(self.target):
            return self._run()

    def _run(self) -> Verdict:
        try:
            plain = self._read(torch.stack([self.path, self.other]), use_cache=False).logits.float()
        except Exception as error:
            return self._verdict("refused", f"reading a text fails: {_words(error)}")
        if not plain.isfinite().all():
            return self._verdict("refused", "its logits are not finite")
        self.plain, self.spread = plain, float((plain.amax(-1) - plain.amin(-1)).max())
        self.limit = EXACT * self.spread
        if self._off(plain[0, :6], plain[1, :6]):
            return self._verdict(
                "refused", "the logits at a token change with the tokens after it, so it is not causal"
            )
        try:
            whole = self._cached()
        except Exception as error:
            return self._verdict("whole text", f"reading with a cache fails: {_words(error)}")
        if whole.cache is None or self.target.cache_name is None:
            return self._verdict("whole text", "it keeps no cache")._replace(cached=False)
        noise = self._noise(whole)
        return self._served(whole, noise)._replace(proved=noise is None)

    def _served(self, whole: Any, noise: str | None) -> Verdict:
        """The first way of reading that is right, with what was wrong with those before it."""
        reasons: list[str] = []
        try:
            strange = unknown(Together(self.target).cache)
        except Exception as error:
            strange = f"layers of its own: {_words(error)}"
        if strange is not None:
            reasons.append(f"its cache keeps {strange}")
        elif noise:
            reasons.append(noise)
        elif self.target.attention not in ("sdpa", "eager"):
            reasons.append(f"{self.target.attention} attention takes no mask of ours")
        else:
            seen = self._try(self._together, True)
            if seen is None:
                return self._verdict("trees", "")
            reasons.append(f"as trees, {seen}")
        fits = self.forwards <= 4 and not self.target.windows() and self.target.takes_mask
        if fits and strange is None and noise is None:
            seen = self._try(self._together, False)
            if seen is None:
                return self._verdict("chains", "; ".join(reasons))
            reasons.append(f"as chains together, {seen}")
        saved = snapshot(whole.cache) if self.forwards <= 2 else None
        seen = self._try(self._alone, whole.cache)
        if seen is None:
            return self._verdict("one by one", "; ".join(reasons))
        reasons.append(f"one by one, {seen}")
        if saved is not None and self.forwards <= 4:
            seen = self._try(self._singly, restored(whole.cache, saved))
            if seen is None:
                return self._verdict("token by token", "; ".join(reasons))
            reasons.append(f"token by token, {seen}")
        return self._verdict("whole text", "; ".join(reasons))

    def _cached(self) -> Any:
        """Four tokens, with the cache that the model makes, or a plain one where it makes none that fits."""
        try:
            return self._read(self.path[None, :4])
        except Exception:
            if self.target.cache_name is None:
                raise
            self.target.plain_cache = True
            return self._read(self.path[None, :4], cache=self.target.fresh_cache())

    def _noise(self, whole: Any) -> str | None:
        """In 16 bits, the limit is what readings of one text differ by: alone, in a batch, in two chunks."""
        dtype = self.target.model.dtype
        if dtype not in (torch.float16, torch.bfloat16):
            return None
        plain = self._read(self.path[None], use_cache=False).logits.float()[0]
        before = snapshot(whole.cache)
        positions = self.target.numbers(self.path[None])[:, 4:]
        rest = self._read(self.path[None, 4:], cache=whole.cache, positions=positions)
        restored(rest.cache, before)
        chunks = torch.cat([whole.logits[0, -4:], rest.logits[0, -6:]]).float()
        noise = max(float((read - self.plain[0]).abs().max()) for read in (plain, chunks))
        self.limit = max(self.limit, 4 * noise, torch.finfo(dtype).eps * self.spread / 2)
        if noise > COARSE * self.spread:
            return f"unproved: plain readings differ by {noise / self.spread:.3f} of their spread"
        return None

    def _together(self, trees: bool) -> str | None:
        """Ragged trees or chains, a rollback, and once more."""
        reader = Together(self._counting(), trees=trees)
        text = torch.stack([self.path, self.path])
        a, p = self.other, self.path.tolist()
        if self.prefilled is None:
            reader.read(text[:, :6], [6, 3])
            if strange := unknown(reader.cache):
                return f"its cache keeps {strange}"
            self.prefilled = snapshot(reader.cache)
        else:
            reader.cache, reader.shortest, reader.longest = restored(reader.cache, self.prefilled), 2, 5
        if trees:
            first = [[p[5], int(a[6]), p[6], p[7], int(a[7])], [p[2], int(a[8]), p[3], p[4]]]
            parents = [[-1, 0, 0, 2, 3], [-1, 0, 0, 2]]
            paths = [[0, 2, 3], [0, 2, 3]]
        else:
            first = [[p[5], p[6], p[7], int(a[7])], [p[2], p[3], p[4], int(a[8]), int(a[9])]]
            parents = [[-1, 0, 1, 2], [-1, 0, 1, 2, 3]]
            paths = [[0, 1, 2], [0, 1, 2]]
        tree = _tree(first, parents, self.target.device)
        lengths = torch.tensor([6, 3], device=self.target.device)
        logits = reader.forward(tree, text, lengths, [6, 3], parents).float()
        starts = tree.cu_nodes.tolist()
        for place, (path, size) in enumerate(zip(paths, (6, 3), strict=True)):
            rows = logits[[starts[place] + node for node in path]]
            if off := self._off(rows, self.plain[0, size - 1 : size + 2]):
                return f"nodes of a draft are off by {off}"
        if trees and (off := self._off(logits[1:2], self.plain[1, 6:7])):
            return f"a second branch is off by {off}"
        padded = torch.tensor([path + [-1] * (tree.max_depth + 1 - len(path)) for path in paths])
        reader.commit(padded.int().to(self.target.device), tree, lengths, [6, 3], paths)
        second = [[p[8], p[9]], [p[5], p[6], p[7]]]
        parents = [[-1, 0], [-1, 0, 1]]
        tree = _tree(second, parents, self.target.device)
        lengths = torch.tensor([9, 6], device=self.target.device)
        logits = reader.forward(tree, text, lengths, [9, 6], parents).float()
        expected = torch.cat([self.plain[0, 8:10], self.plain[0, 5:8]])
        if off := self._off(logits, expected):
            return f"after a rollback, logits are off by {off}"
        return None

    def _alone(self, cache: Any) -> str | None:
        """A wrong chain behind four tokens, a rollback, and the right one."""
        reader = Alone(self._counting(), at_least=self.target.at_least)
        reader.caches, reader.cached = [cache], [4]
        text, p = self.path[None], self.path.tolist()
        tree = _tree(
            [[p[4], p[5], int(self.other[7]), int(self.other[8])]], [[-1, 0, 1, 2]], self.target.device
        )
        lengths = torch.tensor([5], device=self.target.device)
        logits = reader.forward(tree, text, lengths, [5], [[-1, 0, 1, 2]]).float()
        if off := self._off(logits[:2], self.plain[0, 4:6]):
            return f"several tokens at once are off by {off}"
        path = torch.tensor([[0, 1, -1, -1]], dtype=torch.int32, device=self.target.device)
        reader.commit(path, tree, lengths, [5], [[0, 1]])
        tree = _tree([p[6:9]], [[-1, 0, 1]], self.target.device)
        logits = reader.forward(tree, text, lengths + 2, [7], [[-1, 0, 1]]).float()
        if off := self._off(logits, self.plain[0, 6:9]):
            return f"after a rollback, logits are off by {off}"
        if not croppable(cache):  # some states are read on otherwise by a single token
            path = torch.tensor([[0, 1, 2]], dtype=torch.int32, device=self.target.device)
            reader.commit(path, tree, lengths + 2, [7], [[0, 1, 2]])
            tree = _tree([p[9:10]], [[-1]], self.target.device)
            logits = reader.forward(tree, text, lengths + 5, [10], [[-1]]).float()
            if off := self._off(logits, self.plain[0, 9:10]):
                return f"a single token is off by {off}"
        return None

    def _singly(self, cache: Any) -> str | None:
        """A wrong token behind five, a rollback, and the right one."""
        reader = Alone(self._counting(), singly=True)
        reader.caches, reader.cached = [cache], [4]
        text, p = self.path[None], self.path.tolist()
        lengths = torch.tensor([5], device=self.target.device)
        tree = _tree([[p[4], int(self.other[7])]], [[-1, 0]], self.target.device)
        logits = reader.forward(tree, text, lengths, [5], [[-1, 0]]).float()
        if off := self._off(logits[:1], self.plain[0, 4:5]):
            return f"a token is off by {off}"
        path = torch.tensor([[0, -1]], dtype=torch.int32, device=self.target.device)
        reader.commit(path, tree, lengths, [5], [[0]])
        tree = _tree([p[5:6]], [[-1]], self.target.device)
        logits = reader.forward(tree, text, lengths + 1, [6], [[-1]]).float()
        if off := self._off(logits, self.plain[0, 5:6]):
            return f"after a rollback, a token is off by {off}"
        return None

    def _try(self, attempt: Callable[[Any], str | None], argument: Any) -> str | None:
        try:
            return attempt(argument)
        except Exception as error:
            return f"a forward fails: {_words(error)}"

    def _read(self, ids: Tensor, **options: Any) -> Any:
        self.forwards += 1
        return self.target(ids, **options)

    def _counting(self) -> Target:
        """The target, whose forwards are counted."""
        probe, inner = self, self.target

        class Counting(Target):
            def __init__(self) -> None:
                vars(self).update(vars(inner))

            def __call__(self, *arguments: Any, **options: Any) -> Any:
                probe.forwards += 1
                return inner(*arguments, **options)

        return Counting()

    def _off(self, got: Tensor, expected: Tensor) -> str | None:
        """How far two readings are apart, where that is too far."""
        if got.shape != expected.shape:
            return f"a shape of {list(got.shape)} for {list(expected.shape)}"
        worst = float((got - expected).abs().max())
        return None if worst <= self.limit else f"{worst / max(self.spread, 1e-30):.2g} of their spread"

    def _verdict(self, serves: str, reason: str) -> Verdict:
        return Verdict(serves, reason, self.forwards)


@contextmanager
def _narrowed(target: Target) -> Iterator[None]:
    """Windows of attention set to `NARROW` in the configuration."""
    windows = target.windows()
    try:
        for attribute, _ in windows.values():
            setattr(target.config, attribute, NARROW)
        yield
    finally:
        for attribute, size in windows.values():
            setattr(target.config, attribute, size)


def _tokens(target: Target) -> Tensor:
    """Fourteen tokens, spread over the vocabulary, none of them special."""
    special = {target.padding_idx}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(target.model.config, name, None)
        special |= set(value) if isinstance(value, (list, tuple)) else {value}
    usable = [token for token in range(min(target.vocab_size, 4096)) if token not in special] or [0]
    picks = [usable[(7 + 37 * i * (i + 3)) % len(usable)] for i in range(14)]
    return torch.tensor(picks, device=target.device)


def _tree(tokens: list[list[int]], parents: list[list[int]], device: torch.device) -> DraftTree:
    sizes = [0, *map(len, tokens)]
    return DraftTree.from_parents(
        torch.tensor(sum(tokens, []), device=device),
        torch.tensor(sum(parents, []), dtype=torch.int32, device=device),
        torch.tensor(sizes, device=device).cumsum(0).int(),
        proposals=Proposal.POINT,
    )


def _words(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:120]}"
