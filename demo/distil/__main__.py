# SPDX-License-Identifier: Apache-2.0
"""Distils a table of n-grams from the model's own answers.

    python -m demo.distil texts FILE    # answers to training prompts, written by the model
    python -m demo.distil table FILE    # the table of those texts, and how it fares on held-out prompts

Training prompts are put together from topics and questions below. None of them is a prompt of the demo or of
the held-out list.
"""

import argparse
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import torch

from ..drafters.lookup import no_drafts
from ..drafters.ngrams import WEIGHTS, distil
from ..engine import Engine, Request, pages_for
from ..llama import Llama, Shape
from ..smollm import load
from ..timing import PAGE_SIZE, ways

TOGETHER = 48  # requests decoded at once

TOPICS = (
    "electric bicycles", "the water cycle", "bread", "chess", "coral reefs", "public speaking",
    "houseplants", "the French Revolution", "photography", "black holes", "running a marathon",
    "solar panels", "jazz", "learning a language", "vaccines", "volcanoes", "personal budgeting",
    "beekeeping", "databases", "yoga", "the human heart", "train travel", "recycling", "poetry",
    "the stock market", "dogs", "glaciers", "sleep", "operating systems", "gravity", "job interviews",
    "coffee", "the Roman Empire", "knitting", "earthquakes", "machine learning", "composting", "swimming",
    "dinosaurs", "time management", "the moon", "pottery", "antibiotics", "bridges", "mushrooms",
    "the printing press", "meditation", "sharks", "carpentry", "opera", "wind turbines",
    "the immune system", "origami", "democracy", "allergies", "astronomy", "bicycles repair",
    "ancient Egypt", "tea", "negotiation", "cloud computing", "rainforests", "the violin",
    "home insulation", "Mars", "elections", "sourdough", "woodpeckers", "tax returns", "the alphabet",
    "marathons", "owls", "stage fright", "sewing", "wildfires", "the Silk Road", "robots", "cheese",
    "rivers", "first aid", "inflation", "comets", "sculpture", "the digestive system", "tides",
    "folk music", "passwords", "penguins", "the Renaissance", "vitamins", "sailing", "deserts",
    "graphic design", "insurance", "the piano", "bacteria", "renting a flat", "software testing",
    "hurricanes", "drawing", "museums", "stress", "batteries", "wolves", "the Olympic Games", "genetics",
    "ballet", "spreadsheets", "rice", "lightning", "mentoring", "tunnels", "the Vikings", "honey",
    "theatre", "nuclear energy", "skiing", "the metric system", "rabbits", "satellites", "patience",
    "islands", "telephones", "pollution", "gymnastics", "detective novels", "cotton", "orchids",
    "urban planning", "the brain", "chocolate", "encryption", "table tennis", "pensions", "fossils",
    "crows",
)  # fmt: skip
QUESTIONS = (
    "What should a beginner know about {}?",
    "Write a short introduction to {} for a school magazine.",
    "List five interesting facts about {}.",
    "Why is {} important? Give three reasons.",
    "Explain {} in simple words.",
    "What are common mistakes people make with {}?",
    "Give me some tips about {}.",
    "Write a short story in which {} plays a role.",
    "What are the advantages and disadvantages of {}?",
    "How has our view of {} changed over time?",
    "Write an email to a colleague about {}.",
    "Compare {} with something similar and explain the differences.",
    "What questions would you ask an expert on {}?",
    "Make a plan for learning more about {} in one month.",
    "Describe {} to someone who has never heard of it.",
    "What might {} look like in fifty years?",
    "Tell me something surprising about {}.",
    "How would you teach a class of ten-year-olds about {}?",
    "Write a dialogue between two people who disagree about {}.",
    "What equipment or knowledge does one need for {}?",
    "Summarise the history of {} in a few paragraphs.",
    "Write a poem about {}.",
    "Which myths about {} are wrong, and why?",
    "I have to give a talk about {}. Suggest an outline.",
)
HELD_OUT = (
    "My neighbour plays loud music every night. How can I talk to her about it without starting a fight?",
    "What is the difference between a cold and the flu?",
    "I moved to a new city and know nobody. How do I make friends?",
    "Could you explain how a refrigerator keeps food cold?",
    "Suggest a birthday present for a father who says that he needs nothing.",
    "What should I pack for three days of hiking in autumn?",
    "Tell me about the history of the umbrella.",
    "How do I stop my phone from distracting me while I work?",
    "Write a polite note to a landlord about a dripping tap.",
    "Why do leaves change their colour, and why do some trees keep theirs?",
    "What makes a good leader in a small team?",
    "Invent a legend that explains why the sea is salty.",
)


def training_prompts(count: int) -> list[str]:
    prompts = [question.format(topic) for topic, question in itertools.product(TOPICS, QUESTIONS)]
    return random.Random(1).sample(prompts, 2400)[:count]


def write(prompts: list[str], tokens: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) for each prompt; every third at temperature 0.7, the others greedy."""
    lm = load()
    model = Llama(Shape.of(lm.model.config), lm.model.state_dict())
    pages = TOGETHER * pages_for(128 + tokens, PAGE_SIZE)
    engine = Engine(model, no_drafts, eos_id=lm.eos_id, pages=pages, page_size=PAGE_SIZE, max_nodes=1)
    requests = [
        Request(lm.encode_chat(prompt), tokens, 0.7 if number % 3 == 0 else 0.0, number)
        for number, prompt in enumerate(prompts)
    ]
    for request in requests:
        engine.add(request)
    while engine.step():
        pass
    return [(list(request.prompt), request.tokens) for request in requests]


def accepted(drafter: Callable, texts: list[tuple[list[int], list[int]]], depths: int = 6) -> str:
    """Share of the places in greedy answers where a whole tree's path of each depth is what follows."""
    places, found = 0, [0] * depths
    for prompt, answer in texts:
        for place in range(len(answer)):
            (tree,) = drafter([[*prompt, *answer[:place]]])
            length = len(tree.path(answer[place:])) - 1
            places += 1
            for depth in range(min(length, depths)):
                found[depth] += 1
    return " ".join(f"{each / places:.3f}" for each in found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["texts", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, default=1440)
    parser.add_argument("--tokens", type=int, default=160)
    options = parser.parse_args()
    if options.what == "texts":
        texts, prompts = [], training_prompts(options.prompts)
        for first in range(0, len(prompts), 240):
            texts += write(prompts[first : first + 240], options.tokens)
            torch.save(texts, options.file)
            print(f"{len(texts)} answers, {sum(len(answer) for _, answer in texts)} tokens", flush=True)
    else:
        texts = torch.load(options.file)
        table, hit = distil(texts)
        table.save(WEIGHTS)
        size = WEIGHTS.stat().st_size / 1e6
        tokens = sum(len(answer) for _, answer in texts)
        print(f"{len(texts)} answers of {tokens} tokens; {size:.1f} MB")
        print(f"first guess right in answers left out of the table: {hit:.3f}")
        held_out = write(list(HELD_OUT), options.tokens)
        for name, drafter in ways(table, {1: 1.0}).items():
            if name != "plain":
                print(
                    f"{name}, held-out prompts, accepted by depth: {accepted(drafter.draft.lookup, held_out)}"
                )
