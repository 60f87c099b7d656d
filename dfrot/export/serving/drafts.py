"""What an engine makes of a draft beside its target, in a process and an environment of its own.

A driver (`drivers/*_draft_driver.py`) reads a JSON file with

- target, draft: folders as the engine reads them; arch: of the draft; chain: draft tokens per round
- prompts: lists of token ids; new_tokens: behind each; threads; options

and writes one with

- versions: of the engine's packages; tokens: of every prompt the greedy ones behind it
- rounds: verify passes behind a draft; drafted, accepted: draft tokens; accepted_at: of the i-th of a round, or empty
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from dfrot.export.serving.driving import UNREADABLE, EngineRun, run_driver
from dfrot.export.serving.environments import EngineEnvironment

TARGETS_FORMAT = {"vllm": "compressed-tensors", "llama.cpp": "gguf"}
"""Engine of `environments.DRAFT_ENGINES` -> the export format in which it gets the target."""


@dataclass(frozen=True)
class DraftRequest:
    """What an engine is asked to decode."""

    arch: str
    """Of the draft."""
    chain: int
    """Draft tokens per round."""
    prompts: list[list[int]]
    """Token ids."""
    new_tokens: int
    """Greedy tokens behind every prompt."""
    threads: int = 1
    """Threads that the engine may use."""


@dataclass(frozen=True)
class DraftRun:
    """What an engine did with a draft."""

    run: EngineRun
    """How its process went; its refusal where it did not come to an end."""
    tokens: list[list[int]]
    """Of every prompt."""
    rounds: int = 0
    """Verify passes behind a draft."""
    drafted: int = 0
    """Draft tokens."""
    accepted: int = 0
    """Accepted draft tokens."""

    @property
    def tau(self) -> float | None:
        """Acceptance length: tokens per verify pass, the bonus token included."""
        return 1 + self.accepted / self.rounds if self.rounds else None


def run_draft(
    environment: EngineEnvironment, target: Path, draft: Path, request: DraftRequest, limit: float
) -> DraftRun:
    """Run an engine on a target and its draft. limit: seconds. Never raises for what the engine does."""
    content = {"target": str(target.resolve()), "draft": str(draft.resolve()), **asdict(request)}
    run, answer = run_driver(environment, content, request.threads, limit)
    if run.refusal is None:
        try:
            tokens = [[int(token) for token in row] for row in answer["tokens"]]
            counts = [int(answer[key]) for key in ("rounds", "drafted", "accepted")]
            if len(tokens) == len(request.prompts):
                return DraftRun(run, tokens, *counts)
            run.refusal = "gave no readable answer (its texts do not belong to the prompts)"
        except UNREADABLE as error:
            run.refusal = f"gave no readable answer ({type(error).__name__}: {error})"
    return DraftRun(run, [])
