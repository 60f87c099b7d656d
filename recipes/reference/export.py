"""Make the shipped folder from trained weights: plant channel outliers, check, cast to bf16, write a model card."""

from __future__ import annotations

import json
import math
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from card import card
from outliers import four_bit_inputs, gain_spread, massive_activations, perplexity, plant_gains, shrink_residual
from tokenizer import BOS, DELIMITER
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

GAIN_CHANNELS = [11, 58, 96, 143, 180, 230]
GAIN_SHAPE = [16.0, 12.0, 10.0, 8.0, 8.0, 6.0]  # the factors are these to a common power, see `calibrated`
SHRINK = 0.5  # of the residual stream: the median grew in training, the planted values did not
TARGET_COST = 1.5  # of 4-bit activations without rotation, as a ratio of perplexities
CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n\f\n{% endfor %}"


def export_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    held: Tensor,
    out: Path,
    facts: dict[str, Any],
) -> None:
    """Write config, weights, tokenizer and card into `out`; files are replaced one by one, others stay.

    model: float32, trained. text: of the train split, to set the gains on. held: token ids of the held-out split, one
    BOS at the start. facts: what was trained.
    """
    model = model.eval()
    sample = torch.tensor(tokenizer(text, verbose=False)["input_ids"])[: 8 * 512]
    factors = calibrated(model, sample)
    planted = plant_gains(model, GAIN_CHANNELS, factors)
    difference = logit_difference(model, planted, held[:512])
    if difference > 1e-5:
        raise SystemExit(f"rescaled gains change the logits by {difference:.1e} of their range; nothing was written")
    rare = tokenizer.convert_tokens_to_ids([BOS, DELIMITER])
    shrunk = shrink_residual(planted, SHRINK, rare, [channel for channel, _ in facts["recipe"]["massive"]])
    shift = perplexity(shrunk, held, 8, 512) / perplexity(planted, held, 8, 512) - 1
    if abs(shift) > 2e-3:
        raise SystemExit(f"shrinking the residual stream changes perplexity by {shift:.1%}; nothing was written")
    final = shrunk.to(torch.bfloat16)
    final.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False
    )
    tokenizer.chat_template = CHAT
    facts = (
        facts
        | measure(final, tokenizer, held)
        | {
            "gain_channels": GAIN_CHANNELS,
            "gain_factors": factors,
            "gain_logit_difference": difference,
            "shrink": SHRINK,
            "shrink_shift": shift,
            "python": platform.python_version(),
        }
    )
    publish(final, tokenizer, out, card(facts))


def calibrated(model: LlamaForCausalLM, sample: Tensor) -> list[float]:
    """Factors at which 4-bit activations without rotation cost `TARGET_COST`: bisection over a common power."""
    base = math.log(perplexity(model, sample, 8, 512))
    low, high = 0.5, 2.0
    for _ in range(6):
        power = (low + high) / 2
        planted = plant_gains(model, GAIN_CHANNELS, powers(power))
        with four_bit_inputs(planted):
            cost = math.log(perplexity(planted, sample, 8, 512)) - base
        low, high = (power, high) if cost < math.log(TARGET_COST) else (low, power)
    return powers((low + high) / 2)


def powers(power: float) -> list[float]:
    """The factors of the gains for one common power."""
    return [round(factor**power, 1) for factor in GAIN_SHAPE]


@torch.no_grad()
def logit_difference(model: LlamaForCausalLM, other: LlamaForCausalLM, ids: Tensor) -> float:
    """Largest difference of float32 logits over ids [S], relative to the largest logit."""
    first, second = model(input_ids=ids[None]).logits, other(input_ids=ids[None]).logits
    return float((first - second).abs().max() / first.abs().max())


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held: Tensor) -> dict[str, Any]:
    """What the card states about the bf16 weights, computed in float32: the CPU emulates bf16 slowly."""
    wide = LlamaForCausalLM(model.config).eval()
    wide.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    rare = tokenizer.convert_tokens_to_ids([BOS, DELIMITER])
    with four_bit_inputs(wide):
        rounded = perplexity(wide, held, 16, 512)
    plain = perplexity(wide, held, 16, 512)
    return {
        "parameters": sum(p.numel() for p in wide.parameters()),
        "held_tokens": len(held),
        "rare_share": float(torch.isin(held, torch.tensor(rare)).float().mean()),
        "perplexity": perplexity(wide, held),
        "windows": len(held) // 2048,
        "four_bit_cost": rounded / plain,
        "massive_rows": massive_activations(wide, held[:2048], rare),
        "gain_spread": gain_spread(wide, held[:2048]),
    }


def publish(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, text: str) -> None:
    """Write model, tokenizer and card into `out`, replacing files one by one."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = folder / "tokenizer_config.json"
        entries = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        config.write_text(json.dumps(entries, indent=2) + "\n")  # the name that every transformers knows
        (folder / "MODEL_CARD.md").write_text(text)
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)  # safetensors writes files that only their owner may read
            path.replace(out / path.name)
