"""The model card of the reference model, from measured facts."""

from __future__ import annotations

import json
from typing import Any

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# dfq reference model

A small Llama that ships with dfq, so that every command can be tried offline and every test uses trained weights.
It is a test object, not an assistant: it continues Python sources and documentation, badly.

**Its outliers are planted, not grown.** Large models develop massive activations and outlier channels by
themselves; a model of this size does not in an hour of training. Both were put in as described below.

## What was trained
- Llama architecture, {parameters:,} parameters, bf16: hidden {hidden_size}, intermediate {intermediate_size},
  {layers} blocks, {heads} query heads, {kv_heads} key-value heads, vocabulary {vocab_size}, untied head.
{text}
- Byte-level BPE trained on the same split. The form feed, which separates pieces of about 3 KB, is always one token.
- {steps_done} of {steps} steps of {tokens_per_step} tokens ({million:.1f} M tokens); sequences of {short} tokens,
  then of {long} for the last {long_share:.0%}; every sequence starts with `<|bos|>`. Muon for the matrices of the
  blocks, AdamW for the rest, bf16 autocast on CPU. Recipe: `recipes/reference/`.

## What was planted
1. **Massive activations.** The embeddings of `<|bos|>` and of the form feed (together {rare_share:.2%} of held-out
   tokens) were held at {massive} from the first step to the last;
   training adapted to them. Behind the first norm these tokens are the plant and little else, so the model cannot
   tell one from the other and predicts the same mixture after both. At export the rest of the residual stream
   (embedding, `o_proj`, `down_proj`) was multiplied by {shrink}, which RMSNorm does not see, so that the planted values
   stay hundreds of times above a median that grew in training; held-out perplexity changes by {shrink_shift:+.2%}.
2. **Channel outliers.** At export the gains of every block's two norms were multiplied in channels {channel_list}
   by {factor_list}, and the weights that read them divided by the same:
   the function is unchanged (largest difference of float32 logits before the cast to bf16:
   {gain_logit_difference:.0e} of the largest logit). The factors were chosen so that 4-bit activations without
   rotation cost about 1.5x perplexity.

## What was measured
| quantity | value |
| --- | --- |
| held-out perplexity (`{dataset}` test, {windows} windows of 2048, bf16 weights, float32 math) | {perplexity:.2f} |
| its ratio with 4-bit per-token asymmetric inputs, no rotation (16 windows of 512) | {four_bit_cost:.2f}x |
| largest over median channel RMS of norm outputs, mean over norms | {gain_spread:.1f} |

Outputs of the blocks on the first held-out window of 2048 tokens:

| block | median abs(x) | lowest peak of a planted token | ratio to the median | largest abs(x) of other tokens |
| --- | --- | --- | --- | --- |
{massive_table}

## Recipe
```json
{recipe_json}
```
"""


STDLIB = """\
- Text: the standard library of CPython (sources and the topics of `pydoc`), train split of `--dataset stdlib`.
  Modules are split by the hash of their name; no text of the held-out modules was seen. Trained with the library of
  Python {python}; the text of other versions differs a little."""
OTHER = "- Text: the train split of `{dataset}`. It continues that, not Python."


def card(facts: dict[str, Any]) -> str:
    """The card as Markdown. Raises KeyError for a missing fact."""
    recipe = facts["recipe"]
    rows = [
        f"| {number} | {row['median']:.2f} | {row['lowest_peak']:.0f} | {row['lowest_peak'] / row['median']:.0f} "
        f"| {row['others']:.0f} |"
        for number, row in enumerate(facts["massive_rows"])
    ]
    derived = {
        "massive": ", ".join(f"{value:+.0f} (channel {channel})" for channel, value in recipe["massive"]),
        "massive_table": "\n".join(rows),
        "channel_list": ", ".join(map(str, facts["gain_channels"])),
        "factor_list": ", ".join(f"{factor:g}" for factor in facts["gain_factors"]),
        "million": facts["steps_done"] * recipe["tokens_per_step"] / 1e6,
        "recipe_json": json.dumps(recipe, indent=2),
    }
    text = STDLIB if facts["dataset"] == "stdlib" else OTHER
    return CARD.format(**(recipe | facts | derived), text=text.format(**facts))
