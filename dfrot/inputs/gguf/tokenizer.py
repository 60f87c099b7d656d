"""The tokenizer of a GGUF file as the files that transformers reads.

Byte-level BPE (`gpt2`): tokens, merges, and a tag of how text is split. Sentencepiece (`llama`): tokens with scores and
no merges; text is not split, spaces become U+2581, unknown characters become bytes. There the pair whose union scores
highest merges first, so the merges of tokenizer.json are every split of every token into two tokens, by score. Gemma's
scores do not follow the order of its merges; that of its tokens does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs.gguf.metadata import GGUFMetadata
from dfrot.inputs.gguf.pre_tokenizers import PreTokenizer, pre_tokenizer
from dfrot.inputs.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    GGUFVocabulary,
    read_vocabulary,
)

SCORES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
PRE = "tokenizer.ggml.pre"
SPACE = "\u2581"
_NOTHING_SPECIAL: dict[str, Any] = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def tokenizer_files(metadata: GGUFMetadata, rows: int) -> dict[str, str]:
    """File name -> content: tokenizer.json, tokenizer_config.json, and chat_template.jinja where there is one.

    rows: of the embedding, one for every token or more. Raises InputError for a damaged tokenizer, UnsupportedError for
    one that would tokenize differently here."""
    kind = metadata.text("tokenizer.ggml.model", "none")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(f"{metadata.where}: tokenizer {kind[:40]!r} cannot be read; gpt2 and llama can")
    vocabulary = read_vocabulary(metadata, rows, kind)
    if kind == "gpt2":
        if metadata.raw(PRE) is None:
            raise UnsupportedError(
                f"{metadata.where}: {PRE} is missing, so how text is split is unknown; convert the model again",
                file=metadata.header.file,
            )
        split = pre_tokenizer(metadata.text(PRE), metadata.where)
        add_bos, tokenizer = split.add_bos, _byte_level(metadata, vocabulary, split)
    else:
        add_bos, tokenizer = True, _sentencepiece(metadata, vocabulary)
    begin = metadata.flag("tokenizer.ggml.add_bos_token", add_bos)
    end = metadata.flag("tokenizer.ggml.add_eos_token", False)
    tokenizer["post_processor"] = _template(vocabulary, begin, end, metadata, kind == "gpt2")
    texts = {role: vocabulary.tokens[index] for role, index in vocabulary.special.items()}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.integer(".context_length"),
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": text for role, text in texts.items()},
    }
    files = {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
    }
    if metadata.raw("tokenizer.chat_template") is not None:
        files["chat_template.jinja"] = metadata.text("tokenizer.chat_template")
    return files


def _byte_level(metadata: GGUFMetadata, vocabulary: GGUFVocabulary, split: PreTokenizer) -> dict[str, Any]:
    """tokenizer.json of a byte-level tokenizer."""
    merges = metadata.array(MERGES, str)
    if merges is None:
        raise InputError(f"{metadata.where}: no {MERGES}; the file is incomplete", file=metadata.header.file)
    pairs = [_pair(metadata, merge, vocabulary.ids) for merge in merges]
    steps = list(split.steps)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": {"type": split.normalizer} if split.normalizer else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**_model(vocabulary, pairs), "ignore_merges": split.ignore_merges},
    }


def _pair(metadata: GGUFMetadata, merge: str, ids: dict[str, int]) -> list[str]:
    """`a b` as a pair of tokens whose union is a token. Raises InputError for anything else."""
    cut = merge.find(" ", 1)
    first, second = merge[:cut], merge[cut + 1 :]
    if cut < 0 or first not in ids or second not in ids or first + second not in ids:
        raise InputError(
            f"{metadata.where}: merge {merge[:60]!r} is no pair of tokens that makes a token",
            file=metadata.header.file,
        )
    return [first, second]


def _sentencepiece(metadata: GGUFMetadata, vocabulary: GGUFVocabulary) -> dict[str, Any]:
    """tokenizer.json of a sentencepiece tokenizer with byte fallback."""
    scores = metadata.array(SCORES, float, len(vocabulary.tokens))
    if scores is None:
        raise InputError(f"{metadata.where}: no {SCORES}; the file is incomplete", file=metadata.header.file)
    if not all(map(math.isfinite, scores)):
        raise InputError(f"{metadata.where}: {SCORES} holds what is no number", file=metadata.header.file)
    if "unk" not in vocabulary.special:
        raise InputError(f"{metadata.where}: no unknown token; the file is incomplete", file=metadata.header.file)
    gemma = metadata.arch.startswith("gemma")
    if gemma:  # runs of spaces are stored as they are, while text has U+2581 when tokens are looked up
        vocabulary = _with_escaped_spaces(vocabulary)
        scores = [-float(index) for index in range(len(scores))]
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    metadata.require("tokenizer.ggml.remove_extra_whitespaces", (False,), "spaces that are removed")
    spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        spaces = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = vocabulary.tokens[vocabulary.special["unk"]]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": spaces,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_model(vocabulary, _merges(vocabulary, scores)),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _with_escaped_spaces(vocabulary: GGUFVocabulary) -> GGUFVocabulary:
    """The same with tokens of nothing but spaces as ordinary tokens of U+2581."""
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    ids = dict(vocabulary.ids)
    for text, index in vocabulary.ids.items():
        if text.strip(" ") == "" and SPACE * len(text) not in vocabulary.ids:
            tokens[index], types[index] = SPACE * len(text), NORMAL
            ids[tokens[index]] = ids.pop(text)
    return GGUFVocabulary(tokens, types, ids, vocabulary.special)


def _merges(vocabulary: GGUFVocabulary, scores: list[float]) -> list[list[str]]:
    """Every split of a token into two tokens: by score of the union, then by length and ids of the parts."""
    ids = vocabulary.ids
    ranked = []
    for text, index in ids.items():
        if vocabulary.types[index] in (BYTE, UNKNOWN):
            continue
        for cut in range(1, len(text)):
            first, second = text[:cut], text[cut:]
            if first in ids and second in ids:
                key = (-scores[index], -len(first), -len(second), index, ids[first], ids[second])
                ranked.append((key, [first, second]))
    return [pair for _, pair in sorted(ranked)]


def _model(vocabulary: GGUFVocabulary, merges: Iterable[list[str]]) -> dict[str, Any]:
    """`model` of tokenizer.json."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary.ids,
        "merges": list(merges),
    }


def _added_tokens(vocabulary: GGUFVocabulary) -> list[dict[str, Any]]:
    """Tokens that are found in text as they are: control tokens (special) and user-defined ones."""
    whole = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    return [
        {"id": index, "content": text, **_NOTHING_SPECIAL, "special": whole[vocabulary.types[index]]}
        for text, index in sorted(vocabulary.ids.items(), key=lambda item: item[1])
        if vocabulary.types[index] in whole
    ]


def _template(
    vocabulary: GGUFVocabulary, begin: bool, end: bool, metadata: GGUFMetadata, byte_level: bool
) -> dict[str, Any] | None:
    """The post-processor: BOS before a text and EOS behind it, as the file says."""
    roles = [role for role, wanted in (("bos", begin), ("eos", end)) if wanted]
    if missing := [role for role in roles if role not in vocabulary.special]:
        if missing == ["bos"] and metadata.raw("tokenizer.ggml.add_bos_token") is None:
            roles.remove("bos")  # the tag's default, for a model without such a token
        else:
            raise InputError(
                f"{metadata.where}: text is to have a {missing[0]} token, which the file does not name",
                file=metadata.header.file,
            )
    steps: list[dict[str, Any]] = []
    if byte_level:
        steps.append({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True})
    if roles:
        steps.append(_single_template(vocabulary, roles))
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}


def _single_template(vocabulary: GGUFVocabulary, roles: list[str]) -> dict[str, Any]:
    """A template with special tokens of `roles` around every text."""
    texts = {role: vocabulary.tokens[vocabulary.special[role]] for role in roles}

    def around(name: str, number: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        if "bos" in texts:
            parts.append({"SpecialToken": {"id": texts["bos"], "type_id": number}})
        parts.append({"Sequence": {"id": name, "type_id": number}})
        if "eos" in texts:
            parts.append({"SpecialToken": {"id": texts["eos"], "type_id": number}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [vocabulary.special[role]], "tokens": [text]} for role, text in texts.items()
        },
    }
