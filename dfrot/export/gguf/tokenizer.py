"""tokenizer.json as a GGUF vocabulary: byte-level BPE, or BPE with byte fallback.

GGUF calls the byte-level kind (GPT-2, Llama 3, Qwen) `gpt2` and the other one (Llama 2, Mistral) `llama`. The model
`llama` does not split text: spaces become U+2581, and the pair whose union has the highest score merges first. The
score of a token is minus the rank of the first merge that makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.export.gguf.splitting import byte_fallback_prefix, byte_level_tag
from dfrot.files import read_json
from dfrot.inputs.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

NEVER_MERGED = -1e6  # score of a token that no merge makes


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as metadata of a GGUF file."""

    model: str
    """`gpt2` (byte-level) or `llama` (byte fallback)."""
    pre: str
    """llama.cpp's tag of how text is split."""
    tokens: tuple[str, ...]
    """Texts by token id, one for every row of the embedding."""
    types: tuple[int, ...]
    """llama.cpp's token type by token id."""
    merges: tuple[str, ...]
    """Pairs with a space between, by rank; empty for `llama`."""
    special: dict[str, int]
    """Token ids of bos, eos, pad and unk, where there are any."""
    add_bos: bool
    """Whether a text begins with BOS."""
    template: str | None
    """The chat template."""
    scores: tuple[float, ...] = ()
    """Scores by token id, for `llama`."""
    prefix: bool = False
    """Whether a space is put before a text, for `llama`."""


def read_vocabulary(folder: Path, size: int, config: dict[str, Any]) -> Vocabulary:
    """The tokenizer beside a checkpoint with `size` embedding rows; config: of the model, for special token ids.

    Raises InputError for a missing or damaged tokenizer, UnsupportedError for one that llama.cpp does not have."""
    where = folder / "tokenizer.json"
    if not where.is_file():
        raise InputError(f"{folder}: no tokenizer.json; gguf needs the tokenizer inside the file, copy it there")
    try:
        return _read(folder, where, size, config)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        message = f"{where}: not a tokenizer as transformers writes it ({error!r}); restore the file"
        raise InputError(message, file=where) from None


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Add the tokenizer to a `gguf.GGUFWriter`."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    for role, index in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _read(folder: Path, where: Path, size: int, config: dict[str, Any]) -> Vocabulary:
    tokenizer = read_json(where)
    model = tokenizer["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(f"{where}: a {str(model['type'])[:40]} tokenizer; only BPE is exported to gguf")
    tokens, types = _tokens(tokenizer, size, where)
    ids = {text: index for index, text in enumerate(tokens)}
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    common: dict[str, Any] = {
        "special": _special_ids(settings, config, ids),
        "add_bos": _adds_bos(tokenizer.get("post_processor")),
        "template": _chat_template(folder, settings),
    }
    if not model.get("byte_fallback"):
        pre = byte_level_tag(tokenizer, where)
        return Vocabulary("gpt2", pre, tuple(tokens), tuple(types), merges, **common)
    prefix = byte_fallback_prefix(tokenizer, where)
    for index, text in enumerate(tokens):
        if types[index] == NORMAL and len(text) == 6 and text.startswith("<0x"):
            types[index] = BYTE
    if model.get("unk_token") in ids:
        types[ids[model["unk_token"]]] = UNKNOWN
    scores = _scores(tokens, merges)
    return Vocabulary("llama", "default", tuple(tokens), tuple(types), (), scores=scores, prefix=prefix, **common)


def _tokens(tokenizer: dict[str, Any], size: int, where: Path) -> tuple[list[str], list[int]]:
    """Texts and types by token id; rows of the embedding without a token become unused tokens."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[_checked_id(index, size, where)], types[index] = text, NORMAL
    for added in tokenizer.get("added_tokens") or ():
        index = _checked_id(added["id"], size, where)
        tokens[index], types[index] = added["content"], CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _scores(tokens: list[str], merges: tuple[str, ...]) -> tuple[float, ...]:
    """Minus the rank of the first merge that makes each token."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        scores.setdefault(merge.replace(" ", ""), -float(rank))
    return tuple(scores.get(text, NEVER_MERGED) for text in tokens)


def _checked_id(index: Any, size: int, where: Path) -> int:
    """A token id. Raises InputError outside the embedding."""
    if type(index) is not int or not 0 <= index < size:
        message = f"{where}: token id {index!r} is outside the embedding ({size} rows); is it this model's?"
        raise InputError(message, file=where, limit=size)
    return index


def _adds_bos(step: Any) -> bool:
    """Whether the template of a single text begins with a special token."""
    if step is None:
        return False
    if step["type"] == "Sequence":
        return any(_adds_bos(processor) for processor in step["processors"])
    return step["type"] == "TemplateProcessing" and "SpecialToken" in step["single"][0]


def _special_ids(settings: dict[str, Any], config: dict[str, Any], ids: dict[str, int]) -> dict[str, int]:
    """Token ids by role: from tokenizer_config.json, else from config.json."""
    special = {}
    for role in ("bos", "eos", "pad", "unk"):
        text = settings.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        index = ids.get(text) if isinstance(text, str) else config.get(f"{role}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if type(index) is int and 0 <= index < len(ids):
            special[role] = index
    return special


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: its own file, or inside tokenizer_config.json (the one named default, of several)."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = next((template["template"] for template in value if template["name"] == "default"), None)
    return value if isinstance(value, str) else None
