"""transformers in bfloat16, with its default attention and cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers


class TorchEngine:
    """A 16-bit checkpoint folder."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        torch.set_num_threads(threads)
        load: Any = transformers.AutoModelForCausalLM
        self.model = load.from_pretrained(path, dtype=torch.bfloat16, local_files_only=True).eval()
        self.cache: Any = None

    def facts(self) -> dict[str, Any]:
        """What computes, and version."""
        capability = torch.backends.cpu.get_cpu_capability()
        return {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "kernels": f"bfloat16 through oneDNN, {capability}",
        }

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> int:
        """The greedy token behind a prompt."""
        out = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return int(out.logits[0, -1].argmax())

    @torch.inference_mode()
    def step(self, token: int) -> int:
        """The greedy token behind one more."""
        out = self.model(torch.tensor([[token]]), past_key_values=self.cache, use_cache=True)
        return int(out.logits[0, -1].argmax())

    @torch.inference_mode()
    def losses(self, ids: list[int]) -> list[float]:
        """Negative log-likelihood of ids[1:]."""
        tokens = torch.tensor(ids)
        logits = self.model(tokens[None], use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").tolist()


ENGINE = TorchEngine
