# SPDX-License-Identifier: Apache-2.0
"""`sample` as Triton kernels against the reference and the native backend: every option, and bad data."""

from __future__ import annotations

import pytest
import torch
from each import DEVICE

import ptx_emulator
import specdec_kernels as sdk
from specdec_kernels.sampling import ORDERS

# No multiples of 16, which would compile anew, to wider loads.
VOCABS = (2, 31, 200, 5000)
BATCH = 5


def generator(seed):
    return torch.Generator().manual_seed(seed)


def keys(batch, seed=1):
    g = generator(seed)
    seeds = torch.randint(-(2**62), 2**62, (batch,), generator=g)
    return dict(seeds=seeds, positions=torch.randint(0, 2**40, (batch,), generator=g))


def check_agreement(logits, sampling, token_bitmask=None, seed=1, backends=("reference", "cpu")):
    """The same tokens as other backends, and the same log-probabilities, which show the same mass kept."""
    options = dict(token_bitmask=token_bitmask, return_logprobs=True, **keys(len(logits), seed))
    tokens, logprobs = sdk.sample(logits, sampling, backend="triton", **options)
    for backend in backends:
        others, other_logprobs = sdk.sample(logits, sampling, backend=backend, **options)
        assert torch.equal(tokens, others), (backend, logits.shape, sampling)
        torch.testing.assert_close(logprobs, other_logprobs, rtol=1e-5, atol=5e-6)
    return tokens


def random_sampling(g, form):
    """Numbers for all requests, or for each."""
    rand = lambda low, high: torch.rand(BATCH, generator=g) * (high - low) + low  # noqa: E731
    some = lambda: torch.randint(0, 3, (BATCH,), generator=g) > 0  # noqa: E731
    pick = lambda *options: options[int(torch.randint(len(options), (1,), generator=g))]  # noqa: E731
    temperature = rand(0.3, 1.5) * some()
    if form == "temperatures":
        return sdk.SamplingParams(temperature)
    if form == "numbers":
        return sdk.SamplingParams(
            pick(0.8, 1.3), pick(0, 3, 40), pick(1.0, 0.9, 0.5), pick(0.0, 0.05, 0.001, 1.0), pick(*ORDERS)
        )
    return sdk.SamplingParams(
        temperature,
        torch.randint(-1, 60, (BATCH,), generator=g) * some(),
        torch.where(some(), rand(0.1, 1.1), 1.0),
        torch.where(some(), 0.0, rand(0.0, 0.2)),
        pick(*ORDERS),
    )


@pytest.mark.parametrize(
    "dtype, form",
    [
        (torch.float32, "numbers"),
        (torch.float32, "rows"),
        (torch.bfloat16, "temperatures"),
        (torch.bfloat16, "rows"),
        (torch.float16, "rows"),
    ],
)
def test_tokens_and_logprobs_agree(dtype, form):
    g = generator(3)
    for trial in range(3):
        for vocab in VOCABS:
            logits = torch.randn(BATCH, vocab, generator=g) * (0.5, 2.0, 6.0)[trial % 3]
            check_agreement(logits.to(dtype), random_sampling(g, form), seed=trial)


def test_flat_laws_agree():
    """Noise alone decides, and every tile has somebody who nearly wins."""
    logits = torch.zeros(64, 5000, dtype=torch.bfloat16)
    check_agreement(logits, sdk.SamplingParams(torch.ones(64)))


def test_the_first_to_be_reckoned_need_not_win():
    """A large weight with a large key has the best bound, and often a smaller one the better score."""
    logits = torch.tensor([0.0, -0.5, -1.0, -1.5]).expand(256, 4).contiguous()
    check_agreement(logits, sdk.SamplingParams(torch.ones(256)))


def test_a_vocabulary_of_one_token():
    logits = torch.tensor([[3.0], [-float("inf")], [float("nan")]])
    for sampling in (sdk.SamplingParams(), sdk.SamplingParams(top_k=4, top_p=0.3)):
        assert check_agreement(logits, sampling).tolist() == [0, 0, 0]


def test_cuts_agree_where_values_tie():
    """Integer logits: every cut falls on ties, all of which are kept."""
    g = generator(1)
    for trial in range(24):
        vocab = (7, 70, 4999, 5000)[trial % 4]
        dtype = (torch.float32, torch.bfloat16)[trial // 4 % 2]
        logits = torch.randint(-3, 4, (BATCH, vocab), generator=g).to(dtype)
        sampling = sdk.SamplingParams(
            temperature=0.7,
            top_k=(0, 1, 5, 100, 2000, vocab - 1)[trial % 6],
            top_p=(1.0, 0.77, 0.0, 0.31)[trial // 2 % 4],
            min_p=(0.0, 0.013, 1.0)[trial % 3],
            order=ORDERS[trial // 12],
        )
        per_request = sdk.SamplingParams(
            *(torch.full((BATCH,), float(value)) for value in sampling[:1]),
            torch.full((BATCH,), int(sampling.top_k)),
            *(torch.full((BATCH,), float(value)) for value in sampling[2:4]),
            sampling.order,
        )
        check_agreement(logits, per_request, seed=trial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_cuts_agree(dtype):
    """Thresholds below the floor of the list, which are collected."""
    cases = [
        (0, 0.9),
        (0, 0.9999),
        (600, 1.0),
        (600, 0.95),
        (257, 0.5),
        (1025, 0.9999),
        (5000, 1.0),
        (50, 0.99),
    ]
    top_k, top_p = torch.tensor(cases).unbind(1)
    logits = (torch.randn(len(cases), 20_001, generator=generator(2)) * 1.3).to(dtype)
    rows = sdk.SamplingParams(
        torch.full((len(cases),), 1.2), top_k.long(), top_p.contiguous(), torch.tensor([0.0, 1e-4] * 4)
    )
    check_agreement(logits, rows)
    check_agreement(logits, rows._replace(min_p=torch.tensor([2e-3] * 8), order="min_p_last"))


@pytest.mark.skipif(DEVICE != "cpu", reason="counted by the emulator")
@pytest.mark.parametrize(
    "dtype, deviation, top_k, top_p, min_p, reads",
    [
        (torch.bfloat16, 1.5, 2000, 1.0, 0.0, 1),
        (torch.float32, 1.5, 2000, 0.9, 0.0, 1),
        (torch.bfloat16, 1.5, 0, 0.95, 0.0, 1),
        (torch.float32, 1.0, 0, 0.5, 0.0, 1),
        (torch.bfloat16, 1.0, 20_000, 1.0, 0.0, 1),
        (torch.bfloat16, 1.0, 2000, 0.9, 0.0, 1),
        (torch.float32, 3.0, 2000, 1.0, 2e-3, 1),
        (torch.float32, 3.0, 1000, 1.0, 0.05, 0),
        (torch.bfloat16, 1.5, 50, 0.9, 0.0, 0),
    ],
)
def test_a_threshold_is_collected_in_one_read(dtype, deviation, top_k, top_p, min_p, reads):
    """The sample finds the bracket: no row is searched by bisection, and a row whose threshold is listed is
    not read again. Collected scores are read besides, less than a row in all."""
    logits = (torch.randn(2, 32_817, generator=generator(7)) * deviation + 1).to(dtype)
    with ptx_emulator.count() as counted:
        check_agreement(logits, sdk.SamplingParams(1.2, top_k, top_p, min_p), backends=("cpu",))
    searching = ("_sample_collect_kernel", "_sample_select_kernel")
    read = sum(launch.n["global_ld_bytes"] for launch in counted if launch.name in searching)
    further = read / (logits.numel() * logits.element_size())
    assert 0.5 < further < 2.2 if reads else further < 0.1


def crowded(kind):
    """Rows whose threshold lies among so many equal or close scores that a split collects too many of
    them."""
    g = generator(11)
    logits = torch.randn(2, 20_001, generator=g)
    if kind == "ties":
        return logits.round()
    if kind == "close":
        return logits * 1e-6 + 3.0
    logits[:, :9000] = -2.0  # all scores of one split are alike, and those of the others are not
    return logits


@pytest.mark.parametrize(
    "kind, dtype",
    [("ties", torch.bfloat16), ("close", torch.float32), ("one split", torch.float32)],
)
def test_crowded_thresholds_agree(kind, dtype):
    logits = crowded(kind).to(dtype)
    for top_k, top_p in ((3000, 1.0), (9000, 0.7), (0, 0.8), (19_000, 1.0)):
        numbers = torch.full((2,), top_k), torch.full((2,), top_p), torch.zeros(2)
        check_agreement(logits, sdk.SamplingParams(torch.ones(2), *numbers))


def test_scores_in_one_group_agree():
    """Large scores that share a group are missing from the list, which the floor tells."""
    logits = torch.randn(BATCH, 20_001, generator=generator(4))
    logits[:, 5 : 5 + 8 * 2048 : 2048] += torch.linspace(9, 8, 8)
    for top_k in (1, 2, 3, 5, 8, 9):
        for top_p in (1.0, 0.5):
            rows = torch.ones(BATCH)
            check_agreement(logits, sdk.SamplingParams(rows, rows.long() * top_k, rows * top_p, rows * 0))


@pytest.mark.parametrize("vocab", [32_768, 128_256])
def test_vocabularies_of_models_agree(vocab):
    logits = (torch.randn(2, vocab, generator=generator(vocab)) * 3).bfloat16()
    for sampling in (sdk.SamplingParams(0.8), sdk.SamplingParams(0.8, top_k=50, top_p=0.9)):
        check_agreement(logits, sampling)
    check_agreement(logits, sdk.SamplingParams(1.5, top_p=0.95))


def bitmask(allowed):
    """[B, V] bool -> [B, ceil(V / 32)] int32."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32)).view(len(allowed), -1, 32)
    words = (padded.long() << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


@pytest.mark.parametrize("share", [0.7, 0.01])
def test_bitmasks_agree(share):
    g = generator(5)
    for vocab in (70, 5000):
        allowed = torch.rand(BATCH, vocab, generator=g) < share
        for sampling in (sdk.SamplingParams(0.9), sdk.SamplingParams(0.9, top_k=20, top_p=0.8)):
            logits = torch.randn(BATCH, vocab, generator=g) * 3
            tokens = check_agreement(logits, sampling, bitmask(allowed))
            assert bool((allowed.gather(1, tokens[:, None])[:, 0] | ~allowed.any(1)).all())


def test_improper_rows_agree():
    nan, inf = float("nan"), float("inf")
    g = generator(6)
    logits = torch.randn(12, 5000, generator=g)
    logits[0, ::3] = nan
    logits[1] = nan
    logits[2] = -inf
    logits[3, [7, 2900]] = inf
    logits[4, [7, 2900]] = inf
    logits[4, ::5] = nan
    logits[5, 2:] = -inf
    logits[6, 2500] = 3e38
    logits[7] = -3e38
    logits[8, :2999] = nan
    logits[9] = 0.0
    logits[10, 1:] = -3e38
    allowed = torch.rand(12, 5000, generator=g) < 0.5
    allowed[2, :77] = False
    allowed[1] = False
    for sampling in (sdk.SamplingParams(0.9), sdk.SamplingParams(0.9, top_k=20, top_p=0.8, min_p=0.01)):
        check_agreement(logits, sampling)
        check_agreement(logits, sampling, bitmask(allowed))
    check_agreement(logits, sdk.SamplingParams(torch.zeros(12)))


def test_extreme_temperatures_agree():
    logits = (torch.randn(BATCH, 5000, generator=generator(7)) * 4).half()
    logits[0, 3] = 6e4
    for temperature in (1e-30, 1e-4, 1e4, 1e30):
        rows = torch.full((BATCH,), temperature)
        check_agreement(logits, sdk.SamplingParams(rows, torch.tensor([0, 5, 40, 700, 1400])))


def test_a_request_does_not_depend_on_its_batch():
    logits = torch.randn(BATCH, 5000, generator=generator(8)).bfloat16() * 3
    sampling = sdk.SamplingParams(0.8, top_k=40, top_p=0.9)
    options = dict(return_logprobs=True, backend="triton")
    tokens, logprobs = sdk.sample(logits, sampling, **keys(BATCH), **options)
    for b in range(BATCH):
        own = {name: value[b : b + 1] for name, value in keys(BATCH).items()}
        token, logprob = sdk.sample(logits[b : b + 1], sampling, **own, **options)
        assert token == tokens[b] and logprob == logprobs[b]


def test_rows_may_have_strides():
    logits = torch.randn(BATCH, 3, 5000, generator=generator(9))
    check_agreement(logits[:, 1], sdk.SamplingParams(0.8, top_k=40, top_p=0.9))


@pytest.mark.skipif(DEVICE != "cpu", reason="counted by the emulator")
def test_launches_depend_on_what_is_asked_for_alone():
    for logits in (torch.zeros(2, 5000), torch.full((2, 5000), float("nan")), torch.randn(2, 5000)):
        for sampling, launches in ((sdk.SamplingParams(), 2), (sdk.SamplingParams(top_k=9), 5)):
            with ptx_emulator.count() as counted:
                sdk.sample(logits, sampling, backend="triton", **keys(2))
            assert len(counted) == launches


def test_no_rows():
    assert sdk.sample(torch.zeros(0, 9), backend="triton").shape == (0,)
