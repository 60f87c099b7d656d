"""transformers on one folder: `python -I transformers_driver.py REQUEST ANSWER`, in an environment that need not have
dfq.

Reads the JSON file REQUEST and writes the JSON file ANSWER, as `dfrot/export/serving/driving.py` describes them. The
folder is loaded as its config.json says, with no option of ours, unless the request has options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PACKAGES = ("transformers", "compressed-tensors", "gptqmodel", "optimum", "torch")


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the folder; kernels, losses and greedy tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(request["threads"])
    model, info = AutoModelForCausalLM.from_pretrained(
        request["folder"],
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **request["options"],
    )
    model.eval()
    classes = serving_classes(model)  # before the first pass, which may unpack weights
    with torch.inference_mode():
        losses = [token_losses(model, window) for window in request["windows"]]
        tokens = greedy(model, request["prompt"], request["new_tokens"])
    ignored = sorted(str(name) for name in info.get("unexpected_keys", ()))
    return {"linears": classes, "losses": losses, "tokens": tokens, "ignored": ignored}


def serving_classes(model: Any) -> dict[str, int]:
    """How many linears of blocks each (module class, scheme) serves."""
    import torch

    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear) or hasattr(module, "qweight")
        if not is_linear or name.endswith("lm_head"):
            continue
        label = type(module).__name__
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            activations = scheme.input_activations
            bits = 16 if activations is None else activations.num_bits
            status = getattr(module, "quantization_status", None)
            label += f" (w{scheme.weights.num_bits}a{bits}, {getattr(status, 'value', status)})"
        counts[label] = counts.get(label, 0) + 1
    return counts


def token_losses(model: Any, window: list[int]) -> list[float]:
    """Negative log-likelihood of tokens 1 .. n - 1."""
    import torch

    tokens = torch.tensor([window])
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits.double(), tokens[0, 1:], reduction="none")
    return [float(loss) for loss in losses]


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens behind `prompt`."""
    import torch

    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # which -I leaves out
    from driver_script import answer_request  # type: ignore[import-not-found]

    answer_request(run, PACKAGES)
