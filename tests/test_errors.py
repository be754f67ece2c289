# SPDX-License-Identifier: Apache-2.0
"""What the operations refuse, in which words; and that they say it without reading values."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from device import NAME
from torch.utils._pytree import tree_flatten, tree_unflatten

import specdec_kernels as sdk
from specdec_kernels import _debug as debug
from specdec_kernels._ops import backends

INF, NAN = float("inf"), float("nan")
B, K, V = 2, 3, 5
R = B * (K + 1)


def arguments(**changes):
    given = dict(
        target_logits=torch.zeros(R, V),
        tree=sdk.DraftTree.chain(torch.ones((B, K), dtype=torch.int64)),
        draft_logits=torch.zeros(R, V),
        backend="reference",
    )
    return given | changes


def long(*shape):
    return torch.zeros(shape, dtype=torch.int64)


def outputs(**changes):
    given = dict(
        tokens=long(B, K + 1),
        num_tokens=long(B).int(),
        num_accepted=long(B).int(),
        path=long(B, K + 1).int(),
        logprobs=torch.zeros(B, K + 1),
        status=long(B).int(),
    )
    return sdk.Verified(**given | changes)


VALUES = {
    "target rows": (
        dict(target_logits=torch.zeros(R + 1, V)),
        "target_logits must have shape [R, V] = [8, 5], got [9, 5]",
    ),
    "target dims": (
        dict(target_logits=torch.zeros(V)),
        "target_logits must have shape [R, V] or [B, N, V], got [5]",
    ),
    "target batch": (
        dict(target_logits=torch.zeros(B, K, V)),
        "target_logits must have shape [B, N, V] with B = 2 and B * N = R = 8, rows of the root and of each "
        "draft, got [2, 3, 5]",
    ),
    "target of rows": (
        dict(target_logits=torch.zeros(B, K + 1, V), target_rows=long(R).int()),
        "target_logits must have shape [Rt, V] with target_rows, got [2, 4, 5]",
    ),
    "target_rows": (
        dict(target_rows=long(3).int()),
        "target_rows must have shape [R] = [8], got [3]",
    ),
    "target of a bonus": (
        dict(target_logits=torch.zeros(R - 1, V), bonus_tokens=long(B)),
        "target_logits must have shape [R, V] = [8, 5] or [R - B, V] = [6, 5], got [7, 5]",
    ),
    "target batch of a bonus": (
        dict(target_logits=torch.zeros(B, K - 1, V), bonus_tokens=long(B)),
        "target_logits must have shape [B, N, V] with B = 2 and B * N = R = 8 or B * N = R - B = 6, "
        "got [2, 2, 5]",
    ),
    "bonus_tokens": (
        dict(bonus_tokens=long(3)),
        "bonus_tokens must have shape [B] = [2], got [3]",
    ),
    "bonus of trees": (
        dict(
            tree=sdk.DraftTree.from_parents(long(B, 4), torch.tensor([[-1, 0, 1, 1]] * B)),
            bonus_tokens=long(B),
        ),
        "tree must be a chain with bonus_tokens, got another tree",
    ),
    "target stride": (
        dict(target_logits=torch.zeros(V, R).T, draft_logits=None),
        "target_logits must have last stride 1, got strides [1, 8]",
    ),
    "stop_tokens": (
        dict(ends=sdk.Ends(stop_tokens=long(3, 1))),
        "ends.stop_tokens must have shape [B, S] = [2, 1], got [3, 1]",
    ),
    "stop_tokens of all": (
        dict(ends=sdk.Ends(stop_tokens=long(B))),
        "ends.stop_tokens must have shape [B, S], got [2]",
    ),
    "new_tokens_left": (
        dict(ends=sdk.Ends(new_tokens_left=long(1).int())),
        "ends.new_tokens_left must have shape [B] = [2], got [1]",
    ),
    "strides of ends": (
        dict(ends=sdk.Ends(context_left=long(2 * B).int()[::2])),
        "ends.context_left must be contiguous, got strides [2]",
    ),
    "out without finish": (
        dict(ends=sdk.Ends(), out=outputs()),
        "out.finish must be a tensor with ends, got None",
    ),
    "out with finish": (
        dict(out=outputs(finish=long(B).int())),
        "out.finish must be None without ends, got [2]",
    ),
    "out with finish of another size": (
        dict(ends=sdk.Ends(), out=outputs(finish=long(1).int())),
        "out.finish must have shape [B] = [2], got [1]",
    ),
    "no vocabulary": (dict(target_logits=torch.zeros(R, 0)), "target_logits must have V >= 1, got [8, 0]"),
    "draft rows": (
        dict(draft_logits=torch.zeros(3, V)),
        "draft_logits must have shape [R, Vd] = [8, 5], [B, K, Vd] = [2, 3, 5] for chains of one length, or "
        "[Rq, Vd] with draft_rows, got [3, 5]",
    ),
    "draft rows of a flat chain": (
        dict(draft_logits=torch.zeros(B * K, V)),
        "draft_logits must have shape [R, Vd] = [8, 5], [B, K, Vd] = [2, 3, 5] for chains of one length, or "
        "[Rq, Vd] with draft_rows, got [6, 5]",
    ),
    "draft rows of uneven requests": (
        dict(
            target_logits=torch.zeros(5, V),
            tree=sdk.DraftTree.chain(torch.ones(5, dtype=torch.int64), cu_nodes=torch.tensor([0, 2, 5])),
            draft_logits=torch.zeros(3, V),
        ),
        "draft_logits must have shape [R, Vd] = [5, 5], [B, K, Vd] for chains of one length, or "
        "[Rq, Vd] with draft_rows, got [3, 5]",
    ),
    "draft chain": (
        dict(draft_logits=torch.zeros(B, K + 1, V)),
        "draft_logits must have shape [B, K, Vd] with B = 2 and B * (K + 1) = R = 8, got [2, 4, 5]",
    ),
    "draft dims": (
        dict(draft_logits=torch.zeros(V)),
        "draft_logits must have shape [Rq, Vd] or [B, K, Vd], got [5]",
    ),
    "draft stride": (
        dict(draft_logits=torch.zeros(V, R).T),
        "draft_logits must have last stride 1, got strides [1, 8]",
    ),
    "rows of a chain": (
        dict(draft_logits=torch.zeros(B, K, V), draft_rows=long(R).int()),
        "draft_logits must have shape [Rq, Vd] with draft_rows, got [2, 3, 5]",
    ),
    "rows of nothing": (
        dict(draft_logits=None, draft_rows=long(R).int()),
        "draft_rows must be None without draft_logits",
    ),
    "draft_rows": (
        dict(draft_rows=long(3).int()),
        "draft_rows must have shape [R] = [8], got [3]",
    ),
    "vocabulary": (
        dict(draft_vocab=sdk.DraftVocab(torch.arange(5), 9)),
        "draft_vocab must have vocab_size V = 5, got 9",
    ),
    "draft width": (
        dict(draft_vocab=sdk.DraftVocab(torch.arange(4), V)),
        "draft_logits must have shape [..., Vd], Vd = 4 of draft_vocab, = [8, 4], got [8, 5]",
    ),
    "seeds alone": (dict(seeds=long(B)), "positions must be given with seeds, got None"),
    "seeds": (dict(seeds=long(3), positions=long(B)), "seeds must have shape [B] = [2], got [3]"),
    "positions": (
        dict(seeds=long(B), positions=long(1)),
        "positions must have shape [B] = [2], got [1]",
    ),
    "positions alone": (dict(positions=long(B)), "positions must be None without seeds, got [2]"),
    "bitmask": (
        dict(token_bitmask=long(R, 2).int()),
        "token_bitmask must have shape [R, ceil(V / 32)] = [8, 1], got [8, 2]",
    ),
    "per request": (
        dict(sampling=sdk.SamplingParams(top_p=torch.ones(3))),
        "sampling.top_p must have shape [B] = [2], got [3]",
    ),
    "draft_sampling": (
        dict(draft_sampling="odds"),
        "draft_sampling must be a SamplingParams, 'logprobs' or 'probs', got 'odds'",
    ),
    "rule": (
        dict(rule="best"),
        "rule must be one of auto, match, token, traversal or a rule object, got 'best'",
    ),
    "backend": (dict(backend="cuda"), "backend must be one of auto, reference, cpu, triton, got 'cuda'"),
    "out shape": (
        dict(out=outputs(tokens=long(B, K))),
        "out.tokens must have shape [B, max_depth + 1] = [2, 4], got [2, 3]",
    ),
    "out strides": (
        dict(out=outputs(path=long(K + 1, B).int().T)),
        "out.path must be contiguous, got strides [1, 2]",
    ),
    "out logprobs": (
        dict(out=outputs(logprobs=None), return_logprobs=True),
        "out.logprobs must be a tensor with return_logprobs, got None",
    ),
}

TYPES = {
    "target_rows": (
        dict(target_rows=long(R)),
        "target_rows must have dtype int32, got int64",
    ),
    "bonus_tokens": (
        dict(bonus_tokens=torch.zeros(B)),
        "bonus_tokens must have dtype int64 | int32, got float32",
    ),
    "tree": (dict(tree=None), "tree must be a DraftTree, got NoneType"),
    "target": (dict(target_logits=None), "target_logits must be a tensor, got NoneType"),
    "target dtype": (
        dict(target_logits=long(R, V)),
        "target_logits must have dtype float32 | bfloat16 | float16 | float64, got int64",
    ),
    "draft dtype": (
        dict(draft_logits=long(R, V)),
        "draft_logits must have dtype float32 | bfloat16 | float16 | float64, got int64",
    ),
    "draft device": (
        dict(draft_logits=torch.zeros(R, V, device="meta")),
        f"draft_logits must be on device {NAME}, got meta",
    ),
    "tree device": (
        dict(tree=sdk.DraftTree.chain(torch.ones((B, K), dtype=torch.int64, device="meta"))),
        f"tree must be on device {NAME}, got meta",
    ),
    "draft_rows": (dict(draft_rows=long(R)), "draft_rows must have dtype int32, got int64"),
    "draft_vocab": (dict(draft_vocab=torch.arange(5)), "draft_vocab must be a DraftVocab, got Tensor"),
    "seeds": (dict(seeds=long(B).int(), positions=long(B)), "seeds must have dtype int64, got int32"),
    "positions": (dict(seeds=long(B), positions=[0, 0]), "positions must be a tensor, got list"),
    "bitmask": (dict(token_bitmask=long(R, 1)), "token_bitmask must have dtype int32, got int64"),
    "sampling": (dict(sampling=(1.0, 0, 1.0, 0.0)), "sampling must be a SamplingParams, got tuple"),
    "rule": (dict(rule=sdk.Typical), "rule must be a name or a rule object, got type"),
    "ends": (dict(ends=(None, None)), "ends must be an Ends, got tuple"),
    "stop_tokens": (
        dict(ends=sdk.Ends(stop_tokens=long(B, 1).int())),
        "ends.stop_tokens must have dtype int64, got int32",
    ),
    "stops of a set": (dict(ends=sdk.Ends({5})), "ends.stop_tokens must be a tensor, got set"),
    "new_tokens_left": (
        dict(ends=sdk.Ends(new_tokens_left=long(B))),
        "ends.new_tokens_left must have dtype int32, got int64",
    ),
    "finished": (
        dict(ends=sdk.Ends(finished=long(B))),
        "ends.finished must have dtype uint8 | bool, got int64",
    ),
    "device of ends": (
        dict(ends=sdk.Ends(finished=torch.zeros(B, dtype=torch.bool, device="meta"))),
        f"ends.finished must be on device {NAME}, got meta",
    ),
    "out": (dict(out=long(B)), "out must be a Verified, got Tensor"),
    "out dtype": (dict(out=outputs(status=long(B))), "out.status must have dtype int32, got int64"),
}


@pytest.mark.parametrize("case", VALUES)
def test_verify_refuses_values(case):
    changes, message = VALUES[case]
    with pytest.raises(ValueError) as error:
        sdk.verify(**arguments(**changes))
    assert f"verify: {message}" in str(error.value)


@pytest.mark.parametrize("case", TYPES)
def test_verify_refuses_types(case):
    changes, message = TYPES[case]
    with pytest.raises(TypeError) as error:
        sdk.verify(**arguments(**changes))
    assert f"verify: {message}" in str(error.value)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        (dict(logits=torch.zeros(2, 3, V)), ValueError, "logits must have shape [B, V], got [2, 3, 5]"),
        (
            dict(logits=long(2, V)),
            TypeError,
            "logits must have dtype float32 | bfloat16 | float16 | float64, got int64",
        ),
        (dict(seeds=long(2)), ValueError, "positions must be given with seeds, got None"),
        (dict(positions=long(2)), ValueError, "positions must be None without seeds, got [2]"),
        (
            dict(token_bitmask=long(2, 2).int()),
            ValueError,
            "token_bitmask must have shape [B, ceil(V / 32)] = [2, 1]",
        ),
        (dict(sampling=None), TypeError, "sampling must be a SamplingParams, got NoneType"),
    ],
)
def test_sample_refuses(changes, kind, message):
    with pytest.raises(kind) as error:
        sdk.sample(**(dict(logits=torch.zeros(2, V)) | changes))
    assert f"sample: {message}" in str(error.value)


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: sdk.Typical(epsilon=2.0), ValueError, "Typical: epsilon must be in [0.0, 1.0], got 2.0"),
        (lambda: sdk.Typical(delta="a"), TypeError, "Typical: delta must be a number, got str"),
        (lambda: sdk.Relaxed(top_k=0), ValueError, "Relaxed: top_k must be >= 1, got 0"),
        (lambda: sdk.Relaxed(top_k=2.5), TypeError, "Relaxed: top_k must be an int, got float"),
        (lambda: sdk.Lenient(0.5), ValueError, "Lenient: factor must be finite and >= 1.0, got 0.5"),
        (lambda: sdk.Lenient(float("inf")), ValueError, "Lenient: factor must be finite and >= 1.0, got inf"),
        (lambda: sdk.Synthetic(1.1), ValueError, "Synthetic: rate must be in [0.0, 1.0], got 1.1"),
        (lambda: sdk.Synthetic([]), ValueError, "Synthetic: rate must hold at least one number, got none"),
        (
            lambda: sdk.DraftVocab(torch.tensor([1, 1]), 4),
            ValueError,
            "DraftVocab: ids must be distinct, got 1 more than",
        ),
        (
            lambda: sdk.DraftVocab(torch.tensor([1, 4]), 4),
            ValueError,
            "ids must be in [0, V) = [0, 4), got 4 at column 1",
        ),
        (
            lambda: sdk.DraftVocab(torch.tensor([1.0]), 4),
            TypeError,
            "DraftVocab: ids must have dtype int64, got float32",
        ),
        (
            lambda: sdk.DraftVocab(torch.arange(0), 4),
            ValueError,
            "ids must have shape [Vd], Vd >= 1, got [0]",
        ),
    ],
)
def test_objects_refuse(make, kind, message):
    with pytest.raises(kind) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "given, kind, message",
    [
        (dict(temperature=-1), ValueError, "temperature must be finite and >= 0.0, got -1"),
        (dict(temperature=INF), ValueError, "temperature must be finite and >= 0.0, got inf"),
        (dict(temperature="hot"), TypeError, "temperature must be a number or a [B] tensor, got str"),
        (dict(temperature=True), TypeError, "temperature must be a number or a [B] tensor, got bool"),
        (dict(temperature=np.True_), TypeError, "temperature must be a number or a [B] tensor, got bool"),
        (dict(top_k=-2), ValueError, "top_k must be finite and >= -1, got -2"),
        (dict(top_k=NAN), ValueError, "top_k must be finite and >= -1, got nan"),
        (dict(top_k=None), TypeError, "top_k must be a number or a [B] tensor, got NoneType"),
        (dict(top_k=False), TypeError, "top_k must be a number or a [B] tensor, got bool"),
        (
            dict(temperature=0.8, top_k=0.95),
            ValueError,
            "top_k must be an integer (keywords keep top_k and top_p apart), got 0.95",
        ),
        (dict(top_k=np.float32(0.5)), ValueError, "top_k must be an integer (keywords keep top_k and top"),
        (dict(top_p=90), ValueError, "top_p must be in [0.0, 1.0], got 90"),
        (dict(top_p=-0.1), ValueError, "top_p must be in [0.0, 1.0], got -0.1"),
        (dict(top_p=np.ones(2)), TypeError, "top_p must be a number or a [B] tensor, got ndarray"),
        (dict(min_p=NAN), ValueError, "min_p must be in [0.0, 1.0], got nan"),
        (dict(min_p=1.5), ValueError, "min_p must be in [0.0, 1.0], got 1.5"),
        (dict(order="min_p"), ValueError, "order must be one of min_p_first, min_p_last, got 'min_p'"),
        (dict(order=1), TypeError, "order must be one of min_p_first, min_p_last, got int"),
        (dict(order=torch.ones(1)), TypeError, "order must be one of min_p_first, min_p_last, got Tensor"),
    ],
)
def test_sampling_params_refuse(given, kind, message):
    for make in (
        lambda: sdk.SamplingParams(**given),
        lambda: sdk.SamplingParams(*(sdk.SamplingParams()._asdict() | given).values()),
        lambda: sdk.SamplingParams()._replace(**given),
        lambda: sdk.SamplingParams._make((sdk.SamplingParams()._asdict() | given).values()),
    ):
        with pytest.raises(kind) as error:
            make()
        assert f"SamplingParams: {message}" in str(error.value)


def test_sampling_params_are_a_named_tuple_of_plain_numbers_and_tensors():
    law = sdk.SamplingParams(np.float32(0.5), np.int64(7), min_p=np.float64(0.25), order="min_p_last")
    assert law == (0.5, 7, 1.0, 0.25, "min_p_last") and [type(x) for x in law[:2]] == [float, int]
    assert repr(law) == (
        "SamplingParams(temperature=0.5, top_k=7, top_p=1.0, min_p=0.25, order='min_p_last')"
    )
    for other in (pickle.loads(pickle.dumps(law)), copy.deepcopy(law), law._replace(), law._make(law)):
        assert type(other) is sdk.SamplingParams and other == law
    assert sdk.SamplingParams._fields[-1] == "order" and law._replace(top_k=50.0).top_k == 50
    wild = torch.tensor([-3.0, NAN])
    unchecked = sdk.SamplingParams(wild, top_k=wild, top_p=wild, min_p=wild)
    assert all(value is wild for value in unchecked[:4])
    leaves, form = tree_flatten(unchecked)
    assert len(leaves) == 5 and tree_unflatten(leaves, form).top_p is wild
    with pytest.raises(
        ValueError, match=r"verify: sampling.temperature must have shape \[B\] = \[2\], got \[\]"
    ):
        sdk.verify(**arguments(sampling=sdk.SamplingParams(torch.tensor(0.5))))


def test_a_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr(backends, "_triton", lambda: (None, "triton is not installed"))
    with pytest.raises(
        sdk.BackendUnavailable, match=r"verify: backend 'triton' cannot serve this call: triton is not inst"
    ):
        sdk.verify(**arguments(backend="triton"))
    with pytest.raises(sdk.BackendUnavailable, match=r"sample: backend 'triton' cannot serve"):
        sdk.sample(torch.zeros(2, V), backend="triton")
    monkeypatch.setattr(backends, "_native", lambda: (None, "no such file"))
    with pytest.raises(sdk.BackendUnavailable, match=r"backend 'cpu' cannot serve this call: no such file"):
        sdk.sample(torch.zeros(2, V), backend="cpu")
    assert sdk.sample(torch.zeros(2, V)).shape == (2,)  # auto takes the reference
    assert "cpu: missing: no such file" in sdk.explain()


def test_a_triton_that_cannot_compile_the_kernels_is_declined(monkeypatch):
    monkeypatch.setattr(backends, "version", lambda _: "3.3.1")
    assert backends._triton.__wrapped__() == (None, "it needs triton >= 3.4, got 3.3.1")


def test_float64_rows_are_for_the_reference():
    logits = torch.zeros(2, V, dtype=torch.float64)
    assert sdk.sample(logits).shape == (2,)
    if backends._native()[0] is not None:
        with pytest.raises(
            sdk.BackendUnavailable, match=r"serves float32 \| bfloat16 \| float16 rows, got float64"
        ):
            sdk.sample(logits, backend="cpu")
        with pytest.raises(sdk.BackendUnavailable, match="float64"):
            sdk.verify(**arguments(draft_logits=torch.zeros(R, V, dtype=torch.float64), backend="cpu"))


@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("operation", ["verify", "no_such_operation"])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16, torch.float64)])
def test_the_short_way_to_a_backend_leads_where_the_long_one_does(backend, operation, dtypes):
    def found(find):
        try:
            return find()
        except sdk.BackendUnavailable as error:
            return str(error)

    rows = [torch.zeros(1, dtype=dtype) for dtype in dtypes]
    short = found(lambda: backends.serving(backend, operation, rows))
    assert short == found(lambda: backends.load(backend, operation, "cpu", dtypes))


def test_explain_names_every_device_and_operation():
    text = sdk.explain()
    for word in ("native extension", "triton", "every operation on cpu", "on cuda", "reference"):
        assert word in text


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_kernels_serve_every_operation(backend):
    module, reason = backends._module(backend)
    if module is None:
        pytest.skip(reason)
    assert [name for name in backends.OPERATIONS if not hasattr(module, name)] == []


def test_debug_checks_values(monkeypatch):
    target, draft = torch.zeros(R, V), torch.zeros(R, V)
    tokens = torch.tensor([[1, 1, 1], [1, -1, 9]])
    target[5, 2] = draft[2, 1] = torch.nan
    tree = sdk.DraftTree.chain(tokens)
    assert sdk.verify(target, tree, draft, backend="reference").num_tokens.min() >= 1
    monkeypatch.setattr(debug, "ENABLED", True)
    with pytest.raises(
        ValueError, match="verify: target_logits must not hold NaN, got NaN at request 1 node 1"
    ):
        sdk.verify(target, tree, draft)
    target[5, 2] = 0
    with pytest.raises(
        ValueError,
        match=r"verify: tree.tokens must be -1 or in \[0, V\) = \[0, 5\), got 9 at request 1 node 3",
    ):
        sdk.verify(target, tree, draft)
    tokens[1, 2] = 4
    tree = sdk.DraftTree.chain(tokens)
    with pytest.raises(
        ValueError, match="verify: draft_logits must not hold NaN, got NaN at request 0 node 2"
    ):
        sdk.verify(target, tree, draft)
    rows = torch.full((R,), -1, dtype=torch.int32)
    assert sdk.verify(target, tree, draft, draft_rows=rows).num_tokens.min() >= 1
    rows[6] = 2
    with pytest.raises(ValueError, match="draft_logits must not hold NaN, got NaN at request 1 node 2"):
        sdk.verify(target, tree, draft, draft_rows=rows)
    with pytest.raises(ValueError, match="draft_logits must not hold NaN, got NaN at request 1 node 0"):
        sdk.verify(target, tree, draft.reshape(B, K + 1, V)[:, [2, 1, 0]].roll(1, 0))
    target[0] = torch.nan
    with pytest.raises(ValueError, match="sample: logits must not hold NaN, got NaN at request 0"):
        sdk.sample(target)
    monkeypatch.setattr(debug, "ENABLED", False)
    assert sdk.sample(target).shape == (R,)


@pytest.mark.parametrize("backend", ["reference", *(["cpu"] if backends._native()[0] is not None else [])])
def test_debug_tells_of_impossible_drafts(monkeypatch, backend):
    """Of the first that was tested: what lies below node 1 of request 1 is impossible too, and is not."""
    monkeypatch.setattr(debug, "ENABLED", True)
    target, draft = torch.zeros(R, V), torch.zeros(R, V)
    target[4, 1] = draft[:, 4] = -INF
    tokens, parents = (
        torch.tensor([[-1, 1, 2, 3], [-1, 1, 4, 4]]),
        torch.tensor([[-1, 0, 1, 2], [-1, 0, 1, 0]]),
    )
    tree = sdk.DraftTree.from_parents(tokens, parents, proposals=sdk.Proposal.INDEPENDENT)
    given = dict(target_logits=target, tree=tree, backend=backend, seeds=long(B), positions=long(B))
    assert sdk.verify(**given, draft_logits=draft, rule="match").status.tolist() == [0, 0]
    got = "must have probability under the laws of their proposals, got 4 at request 1 node 3"
    for rule in ("token", "traversal", sdk.Lenient(1.5)):
        with pytest.raises(ValueError, match=f"^verify: tree.tokens {got}$"):
            sdk.verify(**given, draft_logits=draft, rule=rule)
    monkeypatch.setattr(debug, "ENABLED", False)
    status = sdk.verify(**given, draft_logits=draft, rule="token").status
    assert status.tolist() == [0, sdk.Status.IMPOSSIBLE]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(temperature=[1.0, -1.0]), "temperature must be finite and >= 0.0, got -1.0 at request 1"),
        (dict(temperature=[INF, 1.0]), "temperature must be finite and >= 0.0, got inf at request 0"),
        (dict(top_k=[-2, 0]), "top_k must be finite and >= -1, got -2 at request 0"),
        (dict(top_p=[0.5, 1.5]), "top_p must be in [0.0, 1.0], got 1.5 at request 1"),
        (dict(min_p=[NAN, 0.5]), "min_p must be in [0.0, 1.0], got nan at request 0"),
    ],
)
def test_debug_checks_numbers_of_requests(monkeypatch, changes, message):
    law = sdk.SamplingParams(**{name: torch.tensor(values) for name, values in changes.items()})
    logits = torch.zeros(B, V)
    calls = {
        "verify: sampling": lambda: sdk.verify(**arguments(sampling=law)),
        "verify: draft_sampling": lambda: sdk.verify(**arguments(draft_sampling=law)),
        "sample: sampling": lambda: sdk.sample(logits, law),
        "sample_children: sampling": lambda: sdk.sample_children(logits, 2, sampling=law),
        "draft_token: sampling": lambda: sdk.draft_token(logits, 0, sampling=law),
    }
    for call in calls.values():
        call()
    monkeypatch.setattr(debug, "ENABLED", True)
    for name, call in calls.items():
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"{name}.{message}"


def test_debug_checks_draft_rows(monkeypatch):
    monkeypatch.setattr(debug, "ENABLED", True)
    rows = torch.full((R,), -1, dtype=torch.int32)
    rows[5] = 3
    rule = r"verify: draft_rows must be -1 or in \[0, Rq\) = \[0, 3\), got 3 at request 1 node 1"
    with pytest.raises(ValueError, match=rule):
        sdk.verify(**arguments(draft_logits=torch.zeros(3, V), draft_rows=rows))
    rows[5] = 2
    assert sdk.verify(**arguments(draft_logits=torch.zeros(3, V), draft_rows=rows)).num_tokens.min() >= 1


def test_debug_checks_rows_and_bonus_tokens_of_the_target(monkeypatch):
    rows = torch.arange(R).int() - 1
    given = arguments(draft_logits=None, target_logits=torch.zeros(R - 2, V), target_rows=rows)
    refused = [
        (given, r"target_rows must be -1 or in \[0, Rt\) = \[0, 6\), got 6 at request 1 node 3"),
        (
            given | dict(target_logits=torch.full((R, V), torch.nan)),
            "target_logits must not hold NaN, got NaN at request 0 node 1",
        ),
        (
            given | dict(target_rows=None, bonus_tokens=torch.tensor([4, 5])),
            r"bonus_tokens must be -1 or in \[0, V\) = \[0, 5\), got 5 at request 1",
        ),
    ]
    for call, _ in refused:
        sdk.verify(**call)
    monkeypatch.setattr(debug, "ENABLED", True)
    for call, message in refused:
        with pytest.raises(ValueError, match=f"^verify: {message}$"):
            sdk.verify(**call)
    rows[R - 1] = -1
    sdk.verify(**given)
    target = torch.zeros(B, K, V)
    target[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="target_logits must not hold NaN, got NaN at request 1 node 2"):
        sdk.verify(**given | dict(target_logits=target, target_rows=None, bonus_tokens=long(B) - 1))


def test_debug_checks_sums_of_probabilities(monkeypatch):
    """Of rows that a sampled child was drawn from."""
    draft = torch.full((R, V), 0.2)
    draft[0, 0], draft[3] = 0.2009, 7.0
    given = arguments(draft_logits=draft, draft_sampling="probs")
    monkeypatch.setattr(debug, "ENABLED", True)
    assert sdk.verify(**given).num_tokens.min() >= 1
    rule = "verify: draft_logits must hold probabilities, >= 0 and of sum 1"
    for value, other in ((0.2012, 0.2), (0.1988, 0.2), (0.5, -0.1)):
        draft[5, 0], draft[5, 1] = value, other
        with pytest.raises(ValueError, match=f"^{rule}, got .* at request 1 node 1$"):
            sdk.verify(**given)
    monkeypatch.setattr(debug, "ENABLED", False)
    assert sdk.verify(**given).num_tokens.min() >= 1


def attend(*, prefix=(5, 12), table=((2, 0), (1, 3)), new=False, **options):
    """Two requests, a root and two children each and one unused node, on four pages of eight slots."""
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 5, 6, -1]] * 2), torch.tensor([[-1, 0, 0, 0]] * 2, dtype=torch.int32)
    )
    cache, fresh = torch.zeros(4, 8, 1, 2), torch.zeros(8, 1, 2)
    lengths, pages = torch.tensor(prefix).int(), torch.tensor(table).int()
    options |= dict(new_key=fresh, new_value=fresh) if new else {}
    return sdk.tree_attention(torch.zeros(8, 1, 2), cache, cache, tree, pages, lengths, **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(prefix=(5, 14)),
            "block_table must have slots for the prefix and the tree, at most P * page_size = 2 * 8, got 17",
        ),
        (
            dict(prefix=(17, 3), new=True),
            "block_table must have slots for the prefix, at most P * page_size = 2 * 8, got 17 at request 0",
        ),
        (dict(prefix=(5, -1)), "prefix_lens must be >= 0, got -1 at request 1"),
        (dict(max_prefix_len=8), "prefix_lens must be <= max_prefix_len = 8, got 12 at request 1"),
        (
            dict(table=((2, 0), (1, 4))),
            "block_table must hold pages in [0, 4) where slots are used, got 4 at request 1 column 1",
        ),
        (
            dict(table=((2, 0), (-1, 3)), window=6),
            "block_table must hold pages in [0, 4) where slots are used, got -1 at request 1 column 0",
        ),
    ],
)
def test_debug_checks_lengths_and_pages_of_attention(monkeypatch, changes, message):
    assert attend(**changes).isfinite().all()
    monkeypatch.setattr(debug, "ENABLED", True)
    with pytest.raises(ValueError) as error:
        attend(**changes)
    assert f"tree_attention: {message}" in str(error.value)


def test_debug_lets_attention_leave_out_what_nobody_sees(monkeypatch):
    monkeypatch.setattr(debug, "ENABLED", True)
    attend(prefix=(5, 13))  # the unused node has no slot
    attend(prefix=(5, 16), new=True)
    attend(table=((2, -1), (-1, 3)), window=5)  # nothing behind the tree; a window of positions 8 to 12


def commit(*, prefix=(5, 12), table=((2, 0), (1, 3)), path=((0, 2), (0, -1)), new=False):
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 5, 6]] * 2), torch.tensor([[-1, 0, 0]] * 2, dtype=torch.int32)
    )
    pages, lengths, kept = (torch.tensor(value).int() for value in (table, prefix, path))
    rows = [torch.zeros(6, 1, 2)] if new else None
    return sdk.commit_kv([torch.zeros(4, 8, 1, 2)], kept, tree, pages, lengths, page_size=8, new=rows)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(prefix=(14, 12)),
            "block_table must have slots for the kept nodes, at most P * page_size = 2 * 8, got 17",
        ),
        (
            dict(prefix=(15, 12), new=True),
            "block_table must have slots for the kept nodes, at most P * page_size = 2 * 8, got 17",
        ),
        (dict(prefix=(-1, 12)), "prefix_lens must be >= 0, got -1 at request 0"),
        (
            dict(table=((2, 9), (1, -1))),
            "block_table must hold pages in [0, 4) where slots are used, got -1 at request 1 column 1",
        ),
    ],
)
def test_debug_checks_slots_of_kept_nodes(monkeypatch, changes, message):
    commit(**changes)
    monkeypatch.setattr(debug, "ENABLED", True)
    with pytest.raises(ValueError) as error:
        commit(**changes)
    assert f"commit_kv: {message}" in str(error.value)
    commit()
    commit(prefix=(14, 12), new=True)
    commit(prefix=(-1, 12), path=((-1, -1), (0, -1)))


@pytest.mark.parametrize("lengths", [(3, 6), (-1, 5)])
def test_debug_checks_lengths_of_texts(monkeypatch, lengths):
    texts, lengths = torch.zeros(2, 5, dtype=torch.int64), torch.tensor(lengths)
    sdk.ngram_draft(texts, lengths, 2)
    monkeypatch.setattr(debug, "ENABLED", True)
    rule = r"lengths must be in \[0, L\] = \[0, 5\], got (6 at request 1|-1 at request 0)"
    for call in (sdk.ngram_draft, sdk.ngram_tree):
        with pytest.raises(ValueError, match=f"{call.__name__}: {rule}"):
            call(texts, lengths, 2)


def test_only_public_names_are_listed():
    assert dir(sdk) == sorted(sdk.__all__)
    for name in ("verification", "sampling", "drafting", "_checks"):
        assert getattr(sdk, name).__name__ == f"specdec_kernels.{name}"


def test_checks_read_no_values():
    """On the meta device nothing can be read."""
    with torch.device("meta"):
        tree = sdk.DraftTree.chain(torch.ones((B, K), dtype=torch.int64))
        left = torch.zeros(B, dtype=torch.int32)
        ends = sdk.Ends(torch.zeros(B, 2, dtype=torch.int64), left, left, torch.zeros(B, dtype=torch.bool))
        given = torch.zeros(R, V), tree, torch.zeros(B, K, V)
        verified = sdk.verify(*given, return_logprobs=True, ends=ends)
        assert [None if t is None else tuple(t.shape) for t in verified] == [
            (2, 4),
            (2,),
            (2,),
            (2, 4),
            (2, 4),
            (2,),
            (2,),
            *[None] * 5,
        ]
        assert sdk.sample(torch.zeros(2, V)).shape == (2,)


def test_an_installation_without_the_extension_says_so():
    script = (
        "import sys; sys.modules['specdec_kernels.cpu._native'] = None\n"
        "import torch, specdec_kernels as sdk\n"
        "assert sdk.sample(torch.tensor([[0.0, 9.0]]), sdk.SamplingParams(0.0)).tolist() == [1]\n"
        "print(sdk.explain())\n"
        "sdk.sample(torch.zeros(1, 2), backend='cpu')"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "missing: the native extension was not built" in run.stdout
    assert "BackendUnavailable: sample: backend 'cpu' cannot serve this call: the native ext" in run.stderr
