"""How byte-level text is split before merging, by llama.cpp's tag, as steps of tokenizer.json.

Tags with the expressions of one published tokenizer share a row. `default` is llama.cpp's own. A file without a tag is
refused: llama.cpp takes `default` for it and warns, since its text was split otherwise in training.
Expressions are those of the publishers' tokenizer.json; llama.cpp writes some of them differently for its own engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dfrot.errors import UnsupportedError

_CASES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLIT = _CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT, QWEN2_SPLIT = _SPLIT % "{1,3}", _SPLIT % ""
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}
GPT2: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def isolated(expression: str) -> dict[str, Any]:
    """A step that makes every match of an expression a piece of its own."""
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp does under a tag."""

    steps: tuple[dict[str, Any], ...]
    """Steps of tokenizer.json's pre-tokenizer, in order; the last one maps bytes to letters."""
    ignore_merges: bool = False
    """A piece that is a token is not merged."""
    add_bos: bool = False
    """Whether a text begins with BOS where the file does not say so."""
    normalizer: str | None = None
    """The publisher's normalizer; llama.cpp has none."""


_LLAMA3 = PreTokenizer((isolated(LLAMA3_SPLIT), BYTES), ignore_merges=True, add_bos=True)
_QWEN2 = (isolated(QWEN2_SPLIT), BYTES)
_DIGITS_GPT2 = PreTokenizer((DIGITS, GPT2))
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer(_LLAMA3.steps)),
    "qwen2": PreTokenizer(_QWEN2, normalizer="NFC"),
    "deepseek-r1-qwen": PreTokenizer(_QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _DIGITS_GPT2),
    **dict.fromkeys(("gpt-2", "phi-2", "mellum", "exaone4"), PreTokenizer((GPT2,))),
    "tekken": PreTokenizer((isolated(TEKKEN_SPLIT), BYTES), ignore_merges=True, add_bos=True),
    "deepseek-v3": PreTokenizer(
        (isolated(r"\p{N}{1,3}"), isolated("[一-龥\u3040-ゟ゠-ヿ]+"), isolated(_DEEPSEEK3), BYTES)
    ),
    "default": PreTokenizer(
        (
            isolated(r"[\p{P}\$\+<=>\^~\|]+"),
            isolated(GPT2_SPLIT),
            isolated(r"\p{N}+"),
            isolated("[0-9][0-9][0-9]"),
            BYTES,
        )
    ),
}


def pre_tokenizer(tag: str, where: str) -> PreTokenizer:
    """What llama.cpp does under `tag`. where: how messages name the file. Raises UnsupportedError for others."""
    if tag not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{where}: pre-tokenizer {tag[:40]!r} is unknown to dfq, and another one would tokenize differently; "
            f"known: {', '.join(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[tag]
