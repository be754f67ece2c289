# SPDX-License-Identifier: Apache-2.0
"""One engine of vLLM in a process of its own: `python -m engines.vllm_serve JOB RESULT`, both JSON files.

A job has the engine's options and batches of [prompt, options of SamplingParams]. The result has tokens,
log-probabilities and numbers of accepted tokens by batch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def serve(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    from specdec_kernels.integrations import vllm as plugin

    if job["mutant"]:
        _mutate()
    llm = LLM(
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        max_num_seqs=64,
        disable_log_stats=False,
        seed=0,
        **job["engine"],
    )
    batches: dict[str, Any] = {}
    for name, batch in job["batches"].items():
        before = _drafts(llm)
        start = time.perf_counter()
        try:
            prompts, laws = [prompt for prompt, _ in batch], [_params(options) for _, options in batch]
            outputs = llm.generate(prompts, laws, use_tqdm=False)
        except Exception as error:
            batches[name] = {"error": f"{type(error).__name__}: {error}"}
            break
        after = _drafts(llm)
        batches[name] = {
            "seconds": time.perf_counter() - start,
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "text": [output.outputs[0].text for output in outputs],
            "logprobs": [_logprobs(output.outputs[0].logprobs) for output in outputs],
            "drafted": after[0] - before[0],
            "accepted": after[1] - before[1],
        }
    return {"batches": batches, "steps": dict(plugin.steps)}


def _params(options: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    options = dict(options)
    if regex := options.pop("regex", None):
        options["structured_outputs"] = StructuredOutputsParams(regex=regex)
    return SamplingParams(**options)


def _drafts(llm: Any) -> tuple[int, int]:
    values = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
    drafted, accepted = (int(values.get(name, 0)) for name in names)
    return drafted, accepted


def _logprobs(positions: Any) -> Any:
    if positions is None:
        return None
    return [{str(token): shown.logprob for token, shown in sorted(row.items())} for row in positions]


def _mutate() -> None:
    """Say that drafts were drawn uniformly, so that nearly all that the target may say is accepted."""
    from specdec_kernels.integrations.vllm import runner1

    drafts = runner1._drafts
    runner1._drafts = lambda metadata, laws: drafts(
        metadata, None if laws is None else laws * 0 + 1 / laws.shape[1]
    )


if __name__ == "__main__":
    result = serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
