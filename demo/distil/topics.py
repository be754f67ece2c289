# SPDX-License-Identifier: Apache-2.0
"""Training prompts, put together from topics and questions, and held-out ones.

None of the training prompts is a prompt of the demo or of the held-out list.
"""

import itertools
import random

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
