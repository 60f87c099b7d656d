"""WikiText-2: from a local folder, or through the `datasets` package if it is installed.

The rows are those of `Salesforce/wikitext`, `wikitext-2-raw-v1`, whichever way they are read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dfrot.data.chat import Render, plain_turns
from dfrot.data.text_rows import read_texts
from dfrot.errors import InputError, ResourceError

HUB_ID, HUB_CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
HUB_TIMEOUT = 4.0  # seconds for the hub's first answer
PATTERNS = ("wiki.{}.raw", "{}.txt", "{}.jsonl", "{}.json", "{}.parquet", "{}-*.parquet")
SUBFOLDERS = ("", HUB_CONFIG, "wikitext-2-raw")
REMEDY = "give as `dataset` a folder that holds wiki.train.raw and wiki.test.raw, or the .parquet files of both splits"


def rows_in_folder(folder: Path, split: Literal["train", "test"], render: Render = plain_turns) -> list[str]:
    """The rows of one split of a dataset folder; shards of a split are read in the order of their names. render:
    conversation -> text.

    Raises InputError when no file of the split is found."""
    for subfolder in SUBFOLDERS:
        for pattern in PATTERNS:
            files = sorted((folder / subfolder).glob(pattern.format(split)))
            if files:
                return [row for file in files for row in read_texts(file, render)]
    expected = ", ".join(pattern.format(split) for pattern in PATTERNS)
    raise InputError(f"{folder}: no file of the {split} split; expected one of {expected}", file=folder)


def rows_from_hub(split: Literal["train", "test"]) -> list[str]:
    """The rows from the cache of `datasets` or from the hub.

    Raises ResourceError, which says what to do instead, without the package or the network."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ResourceError(
            f"wikitext2: the package datasets is not installed; install it, or {REMEDY}", field="dataset"
        ) from error
    try:
        with _offline_unless_reachable(datasets):
            rows = datasets.load_dataset(HUB_ID, HUB_CONFIG, split=split)["text"]
    except Exception as error:  # the package raises network, cache and parsing errors of a dozen types
        cause = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ResourceError(f"wikitext2: neither cached nor reachable ({cause}); {REMEDY}", field="dataset") from error
    return [str(row) for row in rows]


@contextmanager
def _offline_unless_reachable(datasets: Any) -> Iterator[None]:
    """While active, `datasets` reads its cache only, unless the hub answers at once: left alone, it asks the hub again
    and again for half a minute before it looks into its cache or gives up."""
    from huggingface_hub import HfApi, constants

    modules: tuple[Any, ...] = (constants, datasets.config)
    settings = [(module, module.HF_HUB_OFFLINE) for module in modules]
    try:
        HfApi().dataset_info(HUB_ID, timeout=HUB_TIMEOUT)
    except Exception:  # no network, a proxy, offline mode: many types, one meaning
        for module, _ in settings:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in settings:
            module.HF_HUB_OFFLINE = value
