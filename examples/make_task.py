"""Make a task for `dfq eval tasks` out of any text: which of four passages goes on from here?

python examples/make_task.py [FOLDER [DATASET [ITEMS]]]     writes FOLDER/tasks, by default 500 items of stdlib

An item is some words of the text and four ways to go on: what stands there, and three passages of as many words that
follow the same last word at other places of the text. They fit grammatically, so that only what was said before tells
them apart. The same text and seed give the same items. Two tasks share them: `passages` (accuracy) and
`passages_likelihood` (log likelihood of the true passage, which is finer: no item is ever just right or wrong).
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from dfrot.data.text import load_text

BEFORE, PASSAGE, CHOICES = 24, 3, 4  # words of the context, words of a passage, passages
ITEM = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{context}}}}"
target_delimiter: ""
"""
CHOICE = """task: passages
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
"""
LIKELIHOOD = """task: passages_likelihood
output_type: loglikelihood
doc_to_target: "{{choices[label]}}"
metric_list:
  - metric: perplexity
"""


def passages(text: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` items {"context", "choices", "label"} of a text. Raises ValueError where it has fewer."""
    source = random.Random(seed)
    words = re.findall(r"\s*\S+", text)  # each with the space before it, so that joining them gives the text back
    places: dict[str, list[int]] = defaultdict(list)  # word -> where passages behind it begin
    for place in range(1, len(words) - PASSAGE):
        if "\n" not in "".join(words[place : place + PASSAGE]):
            places[words[place - 1]].append(place)
    starts = [place for behind in places.values() if len(behind) >= CHOICES for place in behind if place >= BEFORE]
    items: list[dict[str, Any]] = []
    for place in source.sample(starts, len(starts)):
        true = "".join(words[place : place + PASSAGE])
        others = {"".join(words[other : other + PASSAGE]) for other in places[words[place - 1]]} - {true}
        if len(others) < CHOICES - 1:
            continue
        choices = [true, *source.sample(sorted(others), CHOICES - 1)]
        source.shuffle(choices)
        context = "".join(words[place - BEFORE : place]).lstrip()
        items.append({"context": context, "choices": choices, "label": choices.index(true)})
        if len(items) == count:
            return items
    raise ValueError(f"the text has {len(items)} such places, {count} are wanted")


def main(folder: Path, dataset: str = "stdlib", count: int = 500) -> None:
    tasks = (folder / "tasks").resolve()
    tasks.mkdir(parents=True, exist_ok=True)
    data = tasks / "passages.jsonl"
    items = passages(load_text(dataset, "test").text, count)
    data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    for name, task in (("passages", CHOICE), ("passages_likelihood", LIKELIHOOD)):
        (tasks / f"{name}.yaml").write_text(task + ITEM.format(data=json.dumps(str(data))), encoding="utf-8")
    print(f"{len(items)} items of {dataset} in {tasks}")
    print(f"dfq eval tasks --model reference --task passages --task passages_likelihood --task-path {tasks}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples"), *sys.argv[2:3], *map(int, sys.argv[3:4]))
