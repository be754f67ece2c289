# SPDX-License-Identifier: Apache-2.0
"""vLLM with this package in it, on the CPU: `python -m engines.vllm_run`, which is `make test-vllm`.

It writes its result into docs/vllm.md, and ends with 1 where a check fails.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vllm_stand_ins

from . import models, vllm_cases
from .vllm_cases import Batches

PAGE = models.ROOT / "docs" / "vllm.md"
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 1}
Result = dict[str, Any]
Check = tuple[str, bool, str]


class Engines:
    """Starts engines and keeps what they wrote."""

    def __init__(self) -> None:
        self.folders, self.prompts = models.folders(), models.prompts() | {"short": "My number is"}
        draft = {"method": "draft_model", "model": str(self.folders.draft), "num_speculative_tokens": 4}
        self.drafters = {
            "plain": None,
            "ngram": NGRAM,
            "synthetic": {
                **NGRAM,
                "rejection_sample_method": "synthetic",
                "synthetic_acceptance_length": 5.0,
            },
            "draft": {**draft, "draft_sample_method": "probabilistic"},
        }

    def run(
        self, drafter: str, batches: Batches, ours: bool = True, apart: bool = False, mutant: bool = False
    ) -> Result:
        """One engine of vLLM; `apart`: its core in a process of its own, so that its counts are not seen."""
        engine = {"model": str(self.folders.target), "speculative_config": self.drafters[drafter]}
        job = {"engine": engine, "mutant": mutant, "batches": {}}
        for name, batch in batches.items():
            job["batches"][name] = [(self.prompts[prompt], options) for prompt, options in batch]
        settings = {**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(apart))}
        settings.pop("SPECDEC_VLLM", None)
        if ours:
            settings["SPECDEC_VLLM"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            read, result = Path(folder) / "job.json", Path(folder) / "result.json"
            read.write_text(json.dumps(job), encoding="utf-8")
            command = [sys.executable, "-m", "engines.vllm_serve", str(read), str(result)]
            start = time.perf_counter()
            with open(Path(folder) / "log", "w+", encoding="utf-8") as log:
                code = subprocess.run(command, env=settings, stdout=log, stderr=log).returncode
                log.seek(0)
                if code:
                    raise RuntimeError(f"the engine ended with {code}:\n{log.read()[-4000:]}")
            print(f"{drafter}: {time.perf_counter() - start:.0f} s", flush=True)
            written: Result = json.loads(result.read_text(encoding="utf-8"))
            return written


def checks(engines: Engines) -> Iterator[Check]:
    """What is checked, whether it holds, and what was seen."""
    names = [name for name in engines.prompts if name != "short"]
    greedy, repeated, law = vllm_cases.greedy(names), vllm_cases.repeated(), vllm_cases.law()
    plain = engines.run("plain", greedy | law, ours=False)["batches"]
    ngram = engines.run("ngram", greedy | repeated)
    yield from _texts("ngram", ngram, plain, list(greedy))
    draft = engines.run("draft", greedy | repeated | law)
    yield from _texts("draft model", draft, plain, list(greedy))
    same = ngram["batches"]["seeded"]["tokens"] == draft["batches"]["seeded"]["tokens"]
    yield "seeds: the same text with either drafter", same, ""
    mutant = engines.run("draft", law, mutant=True)["batches"]
    for name, batches in (("draft model", draft["batches"]), ("a mutant with other laws of drafts", mutant)):
        chance = _same_law(batches["law"]["tokens"], plain["law"]["tokens"])
        verdict = "is noticed" if batches is mutant else "the law is the plain engine's"
        seen = f"p = {chance:.2g}, {len(plain['law']['tokens'])} texts; {_accepted(batches['law'])}"
        yield f"{name}, sampled: {verdict}", (chance > 1e-3) == (batches is not mutant), seen
    synthetic = engines.run("synthetic", {"greedy": greedy["greedy"]})["batches"]["greedy"]
    share = synthetic["accepted"] / synthetic["drafted"]
    yield "ngram, synthetic acceptance of everything", share > 0.9, _accepted(synthetic)
    few = {"greedy": greedy["greedy"], "seeded": repeated["seeded"]}
    apart = engines.run("ngram", few, apart=True)["batches"]
    for name in few:
        same = apart[name]["tokens"] == ngram["batches"][name]["tokens"]
        yield f"engine core in a process of its own, {name}: the same texts", same, ""


def _texts(drafter: str, written: Result, plain: Result, greedy: list[str]) -> Iterator[Check]:
    batches = written["batches"]
    for name in greedy:
        same = [a == b for a, b in zip(batches[name]["tokens"], plain[name]["tokens"], strict=True)]
        if name == "mixed":
            same = same[:-2]  # the last two are sampled
        seen = f"{sum(same)} of {len(same)} texts; {_accepted(batches[name])}"
        yield f"{drafter}, {name}: the plain engine's text", all(same), seen
    off = _furthest(batches["logprobs"]["logprobs"], plain["logprobs"]["logprobs"])
    yield f"{drafter}, logprobs: the plain engine's", off < 1e-3, f"off by {off:.1e} at most"
    dates = [re.fullmatch(vllm_cases.DATE["regex"], text) for text in batches["grammar"]["text"]]
    yield f"{drafter}, grammar: the regular expression holds", all(dates), batches["grammar"]["text"][0]
    seeded = batches["seeded"]["tokens"]
    again, among = batches["seeded again"]["tokens"], batches["seeded among others"]["tokens"][:2:-1]
    alone = [batches[f"seeded alone {place}"]["tokens"][0] for place in range(len(seeded))]
    yield f"{drafter}, seeds: the same text again", seeded == again, _accepted(batches["seeded"])
    yield f"{drafter}, seeds: the same text alone", seeded == alone, ""
    yield f"{drafter}, seeds: the same text among others", seeded == among, ""
    other = batches["mixed"]["tokens"][-1]  # the first prompt with another seed
    yield f"{drafter}, seeds: another text with another seed", seeded[0] != other, ""
    steps = written["steps"]
    yield f"{drafter}: every step is ours", set(steps) == {"served"}, f"{steps['served']} steps"


def _same_law(texts: list[list[int]], others: list[list[int]]) -> float:
    """The p-value of a chi-square test that two samples have one law; rare outcomes are pooled."""
    counts, known = (Counter(tuple(text[1:]) for text in sample) for sample in (texts, others))
    frequent = [outcome for outcome, number in (counts + known).items() if number >= 20]
    columns = [(counts[outcome], known[outcome]) for outcome in frequent]
    columns.append((len(texts) - sum(a for a, _ in columns), len(others) - sum(b for _, b in columns)))
    share = len(texts) / (len(texts) + len(others))
    statistic = sum((a - (a + b) * share) ** 2 / ((a + b) * share * (1 - share)) for a, b in columns if a + b)
    freedom = len(columns) - 1
    # Wilson and Hilferty's approximation
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return math.erfc(deviation / math.sqrt(2)) / 2


def _accepted(batch: Result) -> str:
    return f"{batch['accepted']} of {batch['drafted']} drafted tokens accepted"


def _furthest(ours: Any, theirs: Any) -> float:
    """The largest difference of log-probabilities; infinite where other tokens are shown."""
    off = 0.0
    for row, other in ((r, o) for a, b in zip(ours, theirs, strict=True) for r, o in zip(a, b, strict=True)):
        if row.keys() != other.keys():
            return math.inf
        off = max(off, *(abs(row[token] - other[token]) for token in row))
    return off


def own_sampler(engines: Engines) -> Iterator[str]:
    """What vLLM's own rejection sampler does on the CPU, as seen in this run."""
    names = list(engines.prompts)
    for drafter in ("ngram", "draft"):
        plain = {**vllm_cases.SAMPLED, "top_k": 0, "top_p": 1.0}
        batch = [(name, {**plain, "seed": place}) for place, name in enumerate(vllm_cases.NAMES)]
        batches = {"seeded": batch, "seeded again": batch, "cut": [(names[0], vllm_cases.SAMPLED)]}
        written = engines.run(drafter, batches, ours=False)["batches"]
        if "error" in written["seeded"]:
            yield f"{drafter}, sampled: {written['seeded']['error']}"
            continue
        again = written.get("seeded again", {"tokens": []})["tokens"]
        same = sum(a == b for a, b in zip(written["seeded"]["tokens"], again, strict=False))
        yield f"{drafter}, temperature 0.8, seeds: {same} of {len(batch)} texts again the same"
        yield f"{drafter}, temperature 0.8: a text begins {written['seeded']['text'][0][:60]!r}"
        yield f"{drafter}, temperature 0.8: {_accepted(written['seeded'])}"
        yield f"{drafter}, with top-k and top-p: {written['cut'].get('error', 'no error')}"
    synthetic = {"greedy": [(names[0], {"temperature": 0.0, "max_tokens": 8})]}
    written = engines.run("synthetic", synthetic, ours=False)["batches"]["greedy"]
    yield f"synthetic acceptance: {written.get('error', 'no error')}"


def facts() -> Check:
    found = vllm_stand_ins.differences()
    return "classes, fields and parameters: those of the stand-ins", not found, "; ".join(found)


def example(engines: Engines) -> Check:
    """The example of the page."""
    code = re.findall(r"^```python example\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)[0]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "example.py"
        script.write_text(code, encoding="utf-8")
        command = [sys.executable, str(script), str(engines.folders.target)]
        done = subprocess.run(command, env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    texts = [line for line in done.stdout.splitlines() if line[:1] in ("'", '"')]  # and not vLLM's messages
    return "the example of this page runs", done.returncode == 0 and len(texts) == 2, " ".join(texts)[:60]


def main() -> int:
    engines = Engines()
    lines, failed = [], 0
    for what, holds, seen in itertools.chain([facts(), example(engines)], checks(engines)):
        failed += not holds
        lines.append(f"| {what} | {'yes' if holds else '**no**'} | {seen} |")
        print(lines[-1], flush=True)
    own = [f"- {fact}" for fact in own_sampler(engines)]
    print(*own, sep="\n", flush=True)
    names = ("vllm-cpu", "torch", "transformers", "specdec-kernels")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    python = sys.version.split()[0]
    held = f"{len(lines) - failed} of {len(lines)} checks hold"
    head = f"{packages}, Python {python}; float32, one thread; {held}."
    title = "vLLM's own rejection sampler in the same run, SPECDEC_VLLM unset:"
    written = "\n".join([head, "", "| | holds | seen |", "|---|---|---|", *lines, "", title, "", *own, ""])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- run -->\n")
    after = rest.partition("<!-- end -->")[2]
    PAGE.write_text(f"{before}<!-- run -->\n{written}<!-- end -->{after}", encoding="utf-8")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
