"""Timing: what a step costs, and one prompt decoded in three ways, in turn, by the same model."""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from decode import Settings, Step, decode_plain, decode_speculative, verify_draft
from lookup import PromptLookup
from smollm import SmolLM
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

WAYS = ("speculative", "plain", "transformers")
STEP_SIZES = (2, 3, 4, 8, 16)


@dataclass
class Tally:
    """What one way of decoding did. Rates leave out the first step, which reads the prompt."""

    steps: list[Step] = field(default_factory=list)  # of the first round; later rounds repeat it
    decoded: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> list[int]:
        return [token for step in self.steps for token in step.tokens]

    @property
    def rate(self) -> float:
        return self.decoded / self.seconds if self.seconds else float("nan")

    @property
    def tokens_per_step(self) -> float:
        return len(self.tokens) / len(self.steps)

    def acceptance(self) -> list[tuple[int, int]]:
        """(accepted, drafted) at every position of the draft."""
        counts = []
        for place in range(max(step.drafted for step in self.steps)):
            accepted = sum(step.accepted > place for step in self.steps)
            counts.append((accepted, sum(step.drafted > place for step in self.steps)))
        return counts

    def add(self, steps: list[Step], seconds: float) -> None:
        self.steps = self.steps or steps
        self.decoded += sum(len(step.tokens) for step in steps[1:])
        self.seconds += seconds

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        total = cls()
        for tally in tallies:
            total.steps += tally.steps
            total.decoded += tally.decoded
            total.seconds += tally.seconds
        return total


def step_costs(lm: SmolLM, repeats: int = 7) -> dict[int, float]:
    """Duration of a speculative step in units of a single-token step, by the number of tokens it feeds."""
    cache = DynamicCache(config=lm.model.config)
    text = list(range(256))
    noise = Settings(lm.eos_id, 1).noise(len(text))

    def seconds(size: int) -> float:
        start = time.perf_counter()
        verify_draft(lm.model, cache, text[:1], text[1:size], noise)
        elapsed = time.perf_counter() - start
        cache.crop(-size)
        return elapsed

    verify_draft(lm.model, cache, text, [], noise)
    seconds(1)
    # Each size is compared with the single-token step right before it, so that passing load hits both.
    ratios = {size: [] for size in STEP_SIZES}
    for _ in range(repeats):
        for size in STEP_SIZES:
            single = seconds(1)
            ratios[size].append(seconds(size) / single)
    return {1: 1.0} | {size: statistics.median(values) for size, values in ratios.items()}


def compare(
    lm: SmolLM, prompt: list[int], draft: PromptLookup, settings: Settings, rounds: int
) -> dict[str, Tally]:
    """Decode the prompt in every way, in each round.

    Plain and speculative decoding advance in turn, whichever has written less, so that whatever else the
    machine is doing slows both. transformers cannot be interrupted; it runs after and before them by turns.
    """
    tallies = {way: Tally() for way in WAYS}
    for number in range(rounds):
        if number % 2:
            tallies["transformers"].add(*_transformers_lookup(lm, prompt, draft.num_draft, settings))
        _race(
            tallies,
            plain=decode_plain(lm.model, prompt, settings),
            speculative=decode_speculative(lm.model, prompt, draft, settings),
        )
        if number % 2 == 0:
            tallies["transformers"].add(*_transformers_lookup(lm, prompt, draft.num_draft, settings))
    return tallies


def _race(tallies: dict[str, Tally], **runners: Iterator[Step]) -> None:
    steps = {way: [] for way in runners}
    written = dict.fromkeys(runners, 0)
    seconds = dict.fromkeys(runners, 0.0)
    while runners:
        way = min(runners, key=written.get)
        start = time.perf_counter()
        step = next(runners[way], None)
        elapsed = time.perf_counter() - start
        if step is None:
            tallies[way].add(steps[way], seconds[way])
            del runners[way]
            continue
        if steps[way]:
            seconds[way] += elapsed
        steps[way].append(step)
        written[way] += len(step.tokens)


class _Clock(BaseStreamer):
    """Receives the prompt, then the tokens of every step."""

    def __init__(self):
        self.steps = []
        self.times = []

    def put(self, value):
        self.steps.append(Step(value.flatten().tolist()))
        self.times.append(time.perf_counter())

    def end(self):
        pass


@torch.inference_mode()
def _transformers_lookup(
    lm: SmolLM, prompt: list[int], num_draft: int, settings: Settings
) -> tuple[list[Step], float]:
    torch.manual_seed(settings.seed)
    sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    clock = _Clock()
    ids = torch.tensor([prompt])
    lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        prompt_lookup_num_tokens=num_draft,
        max_new_tokens=settings.max_new_tokens,
        streamer=clock,
        **(sampling if settings.temperature else {"do_sample": False}),
    )
    return clock.steps[1:], clock.times[-1] - clock.times[1]
