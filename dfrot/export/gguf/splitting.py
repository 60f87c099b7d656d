"""How a tokenizer splits text before merging, as llama.cpp names it.

How byte-level text is split before merging is code in llama.cpp, chosen by a tag. The tag is looked up here by the
regular expression in tokenizer.json. An expression that is not in the table is refused: a similar one would tokenize
differently without a warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dfrot.errors import UnsupportedError

SPACE = "\u2581"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# steps that split (expressions, or names of built-in steps) -> llama.cpp's tag
PRE_TOKENIZER_TAGS: dict[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    (_SPLIT % "{1,3}",): "llama-bpe",
    (_SPLIT % "",): "qwen2",
    ("Digits", "ByteLevel"): "smollm",
}
IGNORE_MERGES_TAGS = ("llama-bpe",)  # tags under which a piece that is a token is not merged (`ignore_merges`)


def byte_level_tag(tokenizer: dict[str, Any], where: Path) -> str:
    """llama.cpp's tag of a byte-level tokenizer. `tokenizer`: the content of the tokenizer.json `where`.

    Raises UnsupportedError where llama.cpp would tokenize differently."""
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise UnsupportedError(f"{where}: normalizer {normalizer}: llama.cpp does not normalize text", file=where)
    tag = _tag(tokenizer.get("pre_tokenizer"), where)
    if bool(tokenizer["model"].get("ignore_merges")) != (tag in IGNORE_MERGES_TAGS):
        raise UnsupportedError(f"{where}: ignore_merges differs from what llama.cpp does for {tag}", file=where)
    return tag


def byte_fallback_prefix(tokenizer: dict[str, Any], where: Path) -> bool:
    """Whether a byte-fallback tokenizer puts a space before a text.

    Raises UnsupportedError unless it treats spaces as llama.cpp's model `llama` does."""
    normalizer: Any = tokenizer.get("normalizer")
    split: Any = tokenizer.get("pre_tokenizer")
    steps: list[dict[str, Any]] = []
    if normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    kinds = [step["type"] for step in steps]
    metaspace = bool(split) and split["type"] == "Metaspace" and split["replacement"] == SPACE
    if split is None and kinds in (["Prepend", "Replace"], ["Replace"]):
        if steps[-1]["pattern"] == {"String": " "} and steps[-1]["content"] == SPACE:
            return kinds[0] == "Prepend" and bool(steps[0]["prepend"] == SPACE)
    elif metaspace and not kinds and not split.get("split", True):
        return split.get("prepend_scheme") in ("first", "always")
    raise UnsupportedError(
        f"{where}: a byte-fallback tokenizer that treats spaces unlike Llama 2's and Mistral's", file=where
    )


def _tag(step: Any, where: Path) -> str:
    """Look up the tag of a pre-tokenizer."""
    key = tuple(_splitting_steps(step))
    if key not in PRE_TOKENIZER_TAGS:
        raise UnsupportedError(
            f"{where}: pre-tokenizer {json.dumps(key, ensure_ascii=False)[:120]} has no tag here; add it to "
            "PRE_TOKENIZER_TAGS in dfrot/export/gguf/splitting.py when llama.cpp has it",
            file=where,
        )
    return PRE_TOKENIZER_TAGS[key]


def _splitting_steps(step: Any) -> list[str]:
    """The steps that split, in order; a ByteLevel step without its expression only maps bytes to letters."""
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [name for inner in step["pretokenizers"] for name in _splitting_steps(inner)]
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            return ["ByteLevel with a space in front"]
        return ["ByteLevel"] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return ["Digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        return [str(step["pattern"].get("Regex"))]
    return [kind]
