"""What clients ask for: prompts and answers of mixed lengths, the same for a seed on every machine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from dfrot.bench.settings import ServeBenchSettings

_TEXT = """
the of and to in is was for on that with as by it from at his an were are which this be had also or has their first one
its new after but who not they have her she two been other when there all during into school time may years more most
only over city some world would where later up such used many can state about national out known university united then
made under three between team season him being war several before than these no while since part will most river house
system album number until music against name second early well people
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class LoadRequest:
    """One request. prompt: text; answer: tokens to generate."""

    prompt: str
    answer: int


def make_requests(settings: ServeBenchSettings, count: int, clients: int = 0) -> list[LoadRequest]:
    """`count` requests for so many clients, each number of them with prompts of its own. The lengths of prompts are
    spread evenly by their logarithm, those of answers evenly."""
    random_source = random.Random(f"{settings.seed}, {clients} clients")
    common = " ".join(random_source.choices(WORDS, k=settings.shared))
    low, high = map(math.log, settings.prompt)
    requests = []
    for _ in range(count):
        words = round(math.exp(random_source.uniform(low, high)))
        own = " ".join(random_source.choices(WORDS, k=words))
        requests.append(LoadRequest(f"{common} {own}".strip(), random_source.randint(*settings.answer)))
    return requests
