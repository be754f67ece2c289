"""Distils a table of n-grams from the model's own answers.

    python examples/distil.py texts FILE     # answers to training prompts, written by the model
    python examples/distil.py table FILE     # the table from those texts, and how it fares on held-out prompts

Training prompts are put together from topics and questions below; none of them is a prompt of the demo or of the
held-out list, and no topic of theirs occurs in them.
"""

import argparse
import itertools
import random
from pathlib import Path

import torch
from engine import Engine, Request
from llama import Llama, Shape
from race import PAGE_SIZE
from smollm import load

TOPICS = (
    "electric bicycles", "the water cycle", "bread", "chess", "coral reefs", "public speaking", "houseplants",
    "the French Revolution", "photography", "black holes", "running a marathon", "solar panels", "jazz",
    "learning a language", "vaccines", "volcanoes", "personal budgeting", "beekeeping", "databases", "yoga",
    "the human heart", "train travel", "recycling", "poetry", "the stock market", "dogs", "glaciers", "sleep",
    "operating systems", "gravity", "job interviews", "coffee", "the Roman Empire", "knitting", "earthquakes",
    "machine learning", "composting", "swimming", "dinosaurs", "time management", "the moon", "pottery",
    "antibiotics", "bridges", "mushrooms", "the printing press", "meditation", "sharks", "carpentry", "opera",
    "wind turbines", "the immune system", "origami", "democracy", "allergies", "astronomy", "bicycles repair",
    "ancient Egypt", "tea", "negotiation", "cloud computing", "rainforests", "the violin", "home insulation",
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
    return random.Random(1).sample(prompts, count)


def write(count: int, tokens: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of training prompts; every third at temperature 0.7, the others greedy."""
    from lookup import no_drafts

    lm = load()
    model = Llama(Shape.of(lm.model.config), lm.model.state_dict())
    engine = Engine(model, no_drafts, eos_id=lm.eos_id, pages=24 * 320 // PAGE_SIZE, page_size=PAGE_SIZE, max_nodes=1)
    requests = [
        Request(lm.encode_chat(prompt), tokens, 0.7 if number % 3 == 0 else 0.0, number)
        for number, prompt in enumerate(training_prompts(count))
    ]
    for request in requests:
        engine.add(request)
    steps = 0
    while engine.step():
        steps += 1
        if steps % 200 == 0:
            print(f"{sum(len(request.tokens) for request in requests)} tokens", flush=True)
    return [(list(request.prompt), request.tokens) for request in requests]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["texts", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, default=640)
    parser.add_argument("--tokens", type=int, default=160)
    options = parser.parse_args()
    if options.what == "texts":
        torch.save(write(options.prompts, options.tokens), options.file)
