"""dfq, as `dfq generate` runs a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfrot.generation.load_target import load_target
from dfrot.generation.prompt import prefill_prompt


class DfqEngine:
    """A checkpoint folder."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        torch.set_num_threads(threads)
        self.target = load_target(Path(path), drafted=False)
        self.cache: Any = None

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        from dfrot.stage_folder import versions
        from dfrot_kernels import native

        dense = getattr(getattr(self.target.decoder, "decode", None), "__self__", None)
        blocks = "modules in torch"
        if self.target.native is not None:
            blocks = "native decoder"
        elif dense is not None and dense.unfit is None:
            blocks = "native decoder of 16 bits"
        kernels = f"{blocks}, {native.isa()}" if native.active() else f"{blocks}, no native kernels: {native.status()}"
        return {"version": f"dfq {versions()['dfq']}", "kernels": kernels}

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> int:
        """The greedy token behind a prompt."""
        self.cache = self.target.start()
        return int(prefill_prompt(self.target, ids, self.cache, None).logits.argmax())

    @torch.inference_mode()
    def step(self, token: int) -> int:
        """The greedy token behind one more."""
        return int(self.target.step(token, self.cache).argmax())

    @torch.inference_mode()
    def losses(self, ids: list[int]) -> list[float]:
        """Negative log-likelihood of ids[1:]."""
        tokens = torch.tensor(ids)
        features, _ = self.target.prefill(tokens, self.target.start())
        logits = self.target.head(features[:-1]).float()
        return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").tolist()


ENGINE = DfqEngine
