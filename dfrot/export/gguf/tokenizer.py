"""tokenizer.json as GGUF says it: byte-level BPE (GPT-2, Llama 3, Qwen) or BPE with byte fallback (Llama 2, Mistral).

How byte-level text is split before merging is code in llama.cpp, chosen by a tag; here the tag is looked up by the
expression in tokenizer.json. An expression that is not in the table is refused: a near miss would tokenize differently
in silence. The other kind is called `llama` there: no splitting, spaces become U+2581, and the pair whose union has
the highest score merges first; the score of a token is minus the rank of the first merge that makes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.files import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "\u2581"
NEVER = -1e6  # score of a token that no merge makes

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what splits (expressions, or the name of a built-in step) -> llama.cpp's tag
PRE_TOKENIZER_TAGS: dict[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    (_SPLIT % "{1,3}",): "llama-bpe",
    (_SPLIT % "",): "qwen2",
    ("Digits", "ByteLevel"): "smollm",
}
WHOLE = ("llama-bpe",)  # tags under which a piece that is a token is taken whole (`ignore_merges`)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer. model: gpt2 (byte-level) or llama (byte fallback); types: one of
    llama.cpp's token types each; scores: of llama; prefix: whether a space goes in front of a text."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special: dict[str, int]  # bos, eos, pad, unk
    add_bos: bool
    template: str | None
    scores: tuple[float, ...] = ()
    prefix: bool = False


def read_vocabulary(folder: Path, size: int, config: dict[str, Any]) -> Vocabulary:
    """The tokenizer beside a checkpoint with `size` embedding rows. Raises InputError or UnsupportedError."""
    where = folder / "tokenizer.json"
    if not where.is_file():
        raise InputError(f"{folder}: no tokenizer.json; gguf needs the tokenizer inside the file, copy it there")
    try:
        return _read(folder, where, size, config)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{where}: not a tokenizer as transformers writes it ({error!r}); restore the file") from None


def _read(folder: Path, where: Path, size: int, config: dict[str, Any]) -> Vocabulary:
    value = read_json(where)
    model = value["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(f"{where}: a {str(model['type'])[:40]} tokenizer; only BPE is exported to gguf")
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for text, index in model["vocab"].items():
        tokens[_inside(index, size, where)], types[index] = text, NORMAL
    for added in value.get("added_tokens") or ():
        index = _inside(added["id"], size, where)
        tokens[index], types[index] = added["content"], CONTROL if added["special"] else USER_DEFINED
    ids = {text: index for index, text in enumerate(tokens)}
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    merges = tuple(one if isinstance(one, str) else " ".join(one) for one in model["merges"])
    common: dict[str, Any] = {
        "special": _special(settings, config, ids),
        "add_bos": _adds_bos(value.get("post_processor")),
        "template": _template(folder, settings),
    }
    if not model.get("byte_fallback"):
        pre = _byte_level(value, where)
        return Vocabulary("gpt2", pre, tuple(tokens), tuple(types), merges, **common)
    prefix = _fallback(value, where)
    for index, text in enumerate(tokens):
        if types[index] == NORMAL and len(text) == 6 and text.startswith("<0x"):
            types[index] = BYTE
    if model.get("unk_token") in ids:
        types[ids[model["unk_token"]]] = UNKNOWN
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), -float(rank))
    scores = tuple(ranks.get(text, NEVER) for text in tokens)
    return Vocabulary("llama", "default", tuple(tokens), tuple(types), (), scores=scores, prefix=prefix, **common)


def _byte_level(value: dict[str, Any], where: Path) -> str:
    """llama.cpp's tag for how this tokenizer splits; refuses what it would do otherwise."""
    normalizer = (value.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise UnsupportedError(f"{where}: normalizer {normalizer}: llama.cpp does not normalize text")
    pre = _pre(value.get("pre_tokenizer"), where)
    if bool(value["model"].get("ignore_merges")) != (pre in WHOLE):
        raise UnsupportedError(f"{where}: ignore_merges differs from what llama.cpp does for {pre}")
    return pre


def _fallback(value: dict[str, Any], where: Path) -> bool:
    """Whether a space is put in front. Raises UnsupportedError unless all else is what llama.cpp's `llama` does."""
    normalizer: Any = value.get("normalizer")
    split: Any = value.get("pre_tokenizer")
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
    raise UnsupportedError(f"{where}: a byte-fallback tokenizer that treats spaces unlike Llama 2's and Mistral's")


def _inside(index: Any, size: int, where: Path) -> int:
    if type(index) is not int or not 0 <= index < size:
        raise InputError(f"{where}: token id {index!r} is outside the embedding ({size} rows); is it this model's?")
    return index


def _pre(step: Any, where: Path) -> str:
    key = tuple(_steps(step))
    if key not in PRE_TOKENIZER_TAGS:
        raise UnsupportedError(
            f"{where}: pre-tokenizer {json.dumps(key, ensure_ascii=False)[:120]} has no tag here; add it to PRE in "
            "dfrot/export/gguf/tokenizer.py when llama.cpp has it"
        )
    return PRE_TOKENIZER_TAGS[key]


def _steps(step: Any) -> list[str]:
    """The steps that split, in order; a ByteLevel step without its expression only maps bytes to letters."""
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [name for one in step["pretokenizers"] for name in _steps(one)]
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            return ["ByteLevel with a space in front"]
        return ["ByteLevel"] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return ["Digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        return [str(step["pattern"].get("Regex"))]
    return [kind]


def _adds_bos(step: Any) -> bool:
    """Whether the template of a single text begins with a special token."""
    if step is None:
        return False
    if step["type"] == "Sequence":
        return any(_adds_bos(one) for one in step["processors"])
    return step["type"] == "TemplateProcessing" and "SpecialToken" in step["single"][0]


def _special(settings: dict[str, Any], config: dict[str, Any], ids: dict[str, int]) -> dict[str, int]:
    """Ids by role: what tokenizer_config.json says, else config.json."""
    found = {}
    for role in ("bos", "eos", "pad", "unk"):
        text = settings.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        index = ids.get(text) if isinstance(text, str) else config.get(f"{role}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if type(index) is int and 0 <= index < len(ids):
            found[role] = index
    return found


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: its own file, or inside tokenizer_config.json (the one named default, of several)."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = next((one["template"] for one in value if one["name"] == "default"), None)
    return value if isinstance(value, str) else None
