"""MODEL_CARD.md of the reference VLM, from what is measured of it.

    python recipes/vlm/card.py --packed build/vlm/packed

packed: the VLM after dfq rotate and dfq quantize (recipes/vlm/run.sh). Writes beside the weights in the package.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dfrot import reference
from dfrot.data import shapes
from dfrot.files import read_json, write_bytes
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.hub import resolve_model
from dfrot.reference import build_vlm
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.vision.conversations import drawn_conversation, question
from dfrot.vision.image_inputs import ImageInputs
from dfrot.vision.prompts import LlavaPromptReader

ANSWER_TOKENS = 64  # more than any answer has
CARD = """# The reference model that sees

`dfq generate --model reference-vlm --image FILE --prompt "What is in the image?"`. For tests and demonstrations of
images in dfq; it knows nothing of the world.

## What it is
LLaVA layout: a CLIP vision tower ({tower_hidden} wide, {tower_layers} layers, {size} x {size} pixels in patches of
{patch}: {per_image} image tokens), a projector of two linears, and the reference model (`MODEL_CARD.md` one folder
up) with a change of rank {rank} in every linear of its blocks. This folder holds what differs, {bytes:.2f} MB:
`vision.*` (tower and projector) and `delta.safetensors` (the factors), both in bfloat16;
`dfrot/reference/build_vlm.py` puts the checkpoint together. Embeddings, head, norms and with them the planted outliers
are the reference model's. The tokenizer's last merge gave way to `<|image|>` (id {image_token}).

A low-rank change and not the language model as it is: a pilot with the language model frozen needed 250 steps to come
to the loss that this one passes within 50.

## What it was trained on
Images drawn while it trained (`dfrot/data/shapes.py`; nothing was downloaded): one or two things on grey noise, left
or right: {things} in {colours},
or one of the words {words} in one of these colours. Questions: what is in the image, how many things there
are, what is on one side; the answers are sentences of one grammar. First the tower with throw-away classifiers
({tower_steps} steps of {tower_batch} images), then everything ({steps} steps of {batch} conversations), on one thread.
Recipe: `recipes/vlm/train.py`; its settings and result: `training.json`.

## What was measured
{count} held-out images (other seeds), greedy answers that are right word for word:

| model | right |
| --- | --- |
| at the end of training, float32 arithmetic | {trained:.1%} |
| as it ships, bfloat16 | {plain_right:.1%} |
| rotated (randomised Hadamard), W4A4KV4, rounded to nearest | {packed_right:.1%} |

Perplexity of held-out text (`stdlib`, {windows} windows of {seqlen}): {perplexity:.2f}; the reference model has
{before:.2f}: it forgot much of its Python.

## Limits
Anything but such drawings is out of its sight: a photograph is scaled to {size} x {size} and called a shape. Other
questions than the four it was taught give nonsense.

## Recipe
```json
{recipe}
```
"""


def right(folder: Path, count: int) -> float:
    """Share of held-out answers that are right word for word."""
    target, reader, same = load_target(folder), LlavaPromptReader.open(folder), 0
    stop = StopCriteria(ANSWER_TOKENS, end_token_ids(target))
    for seed in range(shapes.HELD_OUT, shapes.HELD_OUT + count):
        messages, pictures, where = drawn_conversation(seed)
        prompt, tensors = reader.encode(question(messages), pictures, where)
        answer = plain(target, prompt, stop, Sampling(), images=ImageInputs(tensors)).tokens
        same += reader.tokenizer.decode(answer, skip_special_tokens=True) == messages[1]["content"]
    return same / count


def main() -> None:
    """Measure, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args()
    shipped, folder = build_vlm.path(), resolve_model("reference-vlm")
    settings = PerplexitySettings(dataset="stdlib", seqlen=512, windows=16)
    results = evaluate([reference.path(), folder], settings)["results"]
    before, after = (result["perplexity"] for result in results)
    recipe, vision = read_json(shipped / "training.json"), read_json(shipped / "vision.json")
    files = ("vision.json", "vision.safetensors", "delta.safetensors", "chat_template.jinja", "training.json")
    facts = {
        **{name: recipe[name] for name in ("rank", "tower_steps", "tower_batch", "steps", "batch")},
        "tower_hidden": vision["tower"]["hidden_size"],
        "tower_layers": vision["tower"]["num_hidden_layers"],
        "size": vision["tower"]["image_size"],
        "patch": vision["tower"]["patch_size"],
        "per_image": LlavaPromptReader.open(folder).config.per_image,
        "image_token": vision["image_token"],
        "bytes": sum((shipped / name).stat().st_size for name in files) / 1e6,
        "things": ", ".join(shapes.SHAPES),
        "colours": ", ".join(shapes.COLOURS),
        "words": ", ".join(shapes.WORDS),
        "count": arguments.count,
        "trained": recipe["answers_right"],
        "plain_right": right(folder, arguments.count),
        "packed_right": right(arguments.packed, arguments.count),
        "windows": settings.windows,
        "seqlen": settings.seqlen,
        "perplexity": after,
        "before": before,
        "recipe": json.dumps(recipe, indent=2, sort_keys=True),
    }
    write_bytes(shipped / "MODEL_CARD.md", CARD.format(**facts).encode())
    print(f"wrote {shipped / 'MODEL_CARD.md'}")


if __name__ == "__main__":
    main()
