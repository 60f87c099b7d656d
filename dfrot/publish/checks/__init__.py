"""The checks before an upload, each for one known trip-up of quantized models on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dfrot.publish.checks.files import leftovers, licence
from dfrot.publish.checks.text import chat_template, generation_config, processor, tokenizer
from dfrot.publish.checks.weights import dtypes, head, mtp, shards
from dfrot.publish.finding import Finding
from dfrot.publish.published_folder import PublishedFolder

Check = Callable[[PublishedFolder], Iterable[Finding]]
CHECKS: dict[str, Check] = {
    "head": head,
    "mtp": mtp,
    "tokenizer": tokenizer,
    "chat template": chat_template,
    "generation config": generation_config,
    "processor": processor,
    "shards": shards,
    "dtypes": dtypes,
    "leftovers": leftovers,
    "licence": licence,
}
"""Name -> check, in the order in which they run."""


def run_checks(subject: PublishedFolder) -> list[Finding]:
    """What all checks find."""
    return [finding for check in CHECKS.values() for finding in check(subject)]
