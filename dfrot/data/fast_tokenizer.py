"""A tokenizer.json read by the `tokenizers` package, without transformers, where that gives transformers' token ids.

transformers builds its own tokenizer around tokenizer.json and changes it by what tokenizer_config.json and the class
named there say. For files that leave nothing to change (`refuses`) the result is the file itself, and importing
transformers, which takes seconds, is not needed. Other files are left to transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dfrot.compat.chat_templates import apply_chat_template
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError
from dfrot.files import read_json

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens by the keys of tokenizer_config.json, in transformers' order."""
AS_STORED = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes (without the ending Fast) that load tokenizer.json as it is."""
REBUILT = "Qwen2Tokenizer"
"""A class that builds the tokenizer anew from the file's vocabulary and merges."""
_MODEL_TYPES = {"llama": False, "mistral": False, "qwen2": True, "qwen3": True}
"""Model types whose class is known -> whether transformers may take REBUILT whatever tokenizer_config.json names."""
_ELSEWHERE = ("tekken.json", "additional_chat_templates")  # what other readers are needed for
_LEGACY = ("special_tokens_map.json", "added_tokens.json")  # read only where added_tokens_decoder is missing
_WITHOUT_EFFECT = {
    *("backend", "is_local", "local_files_only", "model_max_length", "tokenizer_class", "name_or_path", "errors"),
    *("clean_up_tokenization_spaces", "add_bos_token", "add_eos_token", "add_prefix_space", "model_input_names"),
    *("padding_side", "truncation_side", "legacy", "use_default_system_prompt", "processor_class"),
}
"""Keys that change no ids: transformers ignores them where there is a tokenizer.json, or for byte-pair encoding."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_REBUILT_STEPS: list[dict[str, Any]] = [
    {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
    _BYTES,
]
"""How REBUILT splits a text, which a file must say too. It normalizes to NFC, whatever the file says."""


class FastTokenizer:
    """A tokenizer for prompts and for text that is generated, with the names of transformers' tokenizers.

    chat_template: the template of conversations, or None. special_tokens_map: key of tokenizer_config.json -> token."""

    def __init__(self, tokenizer: Any, named: dict[str, str], extra: Sequence[str], chat_template: str | None) -> None:
        """tokenizer: of the `tokenizers` package. named: special tokens by key. extra: further special tokens."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend_tokenizer = tokenizer
        self.special_tokens_map, self.chat_template = named, chat_template
        self._special = list(dict.fromkeys([*named.values(), *extra]))

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        """Token ids under "input_ids". Further options of transformers' tokenizers change nothing here."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """What the vocabulary calls a token; None for an id that it lacks."""
        return self.backend_tokenizer.id_to_token(token)  # type: ignore[no-any-return]

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens that tokenizer_config.json names."""
        return [self.backend_tokenizer.token_to_id(token) for token in self._special]

    @cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> token that was added to the vocabulary."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The template, by the signature that transformers' rendering calls."""
        if (template := chat_template or self.chat_template) is None:
            raise InputError("the tokenizer has no chat template")
        return template

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> str:
        """The text of a conversation, as transformers renders it."""
        return apply_chat_template(self, messages, **options)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint's folder for prompts and generated text: a FastTokenizer, or transformers' where
    that has to read the folder. Raises InputError where there is none."""
    return open_fast_tokenizer(folder) or load_tokenizer(folder)


def open_fast_tokenizer(folder: Path) -> FastTokenizer | None:
    """The tokenizer of a checkpoint's folder; None where transformers has to read it."""
    try:
        parts = _read(folder)
    except (InputError, OSError):
        return None
    if parts is None or refuses(folder, *parts) is not None:
        return None
    from tokenizers import AddedToken, Tokenizer, normalizers

    _, settings, config = parts
    template_file = folder / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else settings.get("chat_template")
    named = {key: _content(settings[key]) for key in NAMED_TOKENS if settings.get(key) is not None}
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises nothing more precise; transformers' reader says in one line what is wrong
        return None
    if _is_rebuilt(settings, config):
        tokenizer.normalizer = normalizers.NFC()
    extra = [_content(token) for token in _extra(settings)]
    stored = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [token for token in dict.fromkeys([*named.values(), *extra]) if token not in stored]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in missing])
    return FastTokenizer(tokenizer, named, extra, template)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]] | None:
    """tokenizer.json, tokenizer_config.json and config.json; None where one is missing or no object."""
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "config.json")]
    if not all(file.is_file() for file in files):
        return None
    model, settings, config = (read_json(file) for file in files)
    return (model, settings, config) if all(isinstance(part, dict) for part in (model, settings, config)) else None


def refuses(folder: Path, model: dict[str, Any], settings: dict[str, Any], config: dict[str, Any]) -> str | None:
    """Why transformers could make another tokenizer of the folder than tokenizer.json, or None. model, settings,
    config: tokenizer.json, tokenizer_config.json, config.json."""
    files = [*_ELSEWHERE, *(_LEGACY if "added_tokens_decoder" not in settings else ())]
    if present := [name for name in files if (folder / name).exists()]:
        return f"{present[0]} is there"
    known = {*_WITHOUT_EFFECT, *NAMED_TOKENS, "added_tokens_decoder", "extra_special_tokens", "chat_template"}
    if unknown := sorted(set(settings) - known - {"additional_special_tokens"}):
        return f"tokenizer_config.json sets {unknown[0]}"
    if not isinstance(settings.get("chat_template"), str | None):
        return "several chat templates"
    if not isinstance(model.get("model"), dict) or model["model"].get("type") != "BPE":
        return "no byte-pair encoding"
    if not _is_sound(model, settings):
        return "entries of another form than they have"
    if model.get("padding") is not None:
        return "tokenizer.json names a token for padding"
    return _refuses_class(model, settings, config) or _refuses_tokens(model, settings, _is_rebuilt(settings, config))


def _is_sound(model: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether what is read here of both files has the types that it should have."""
    tokens, steps = model.get("added_tokens", []), model.get("pre_tokenizer")
    are_tokens = isinstance(tokens, list) and all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
        for token in tokens
    )
    objects = (model["model"].get("vocab"), steps or {}, settings.get("added_tokens_decoder") or {})
    return are_tokens and all(isinstance(part, dict) for part in objects)


def _refuses_class(model: dict[str, Any], settings: dict[str, Any], config: dict[str, Any]) -> str | None:
    name = settings.get("tokenizer_class")
    if not isinstance(name, str):
        return "tokenizer_config.json names no class"
    name, model_type = name.removesuffix("Fast"), config.get("model_type")
    if name not in (*AS_STORED, REBUILT) or model_type not in _MODEL_TYPES:
        return f"class {name} of a model of type {model_type}"
    return _refuses_rebuilding(model, settings) if _is_rebuilt(settings, config) else None


def _is_rebuilt(settings: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether transformers may take REBUILT."""
    name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    return name == REBUILT or _MODEL_TYPES.get(str(config.get("model_type")), False)


def _refuses_rebuilding(model: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """Why REBUILT makes another tokenizer than the file, or None."""
    steps = model.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers") if steps.get("type") == "Sequence" else None
    alike = isinstance(parts, list) and len(parts) == 2 and all(map(_holds, parts, _REBUILT_STEPS))
    stored = model.get("normalizer")
    named = str(settings.get("tokenizer_class")).removesuffix("Fast") == REBUILT
    normalizes = stored == {"type": "NFC"} or (stored is None and named)  # alike whichever class transformers takes
    if not alike or not normalizes or settings.get("add_prefix_space"):
        return f"other steps than those of {REBUILT}"
    if not _holds(model.get("decoder"), {"type": "ByteLevel"}):
        return f"another decoder than that of {REBUILT}"
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    if any(model["model"].get(option) for option in (*options, "ignore_merges")):
        return f"other options of the encoding than those of {REBUILT}"
    added, vocabulary = model.get("added_tokens", []), model["model"]["vocab"]
    new = sorted(token["id"] for token in added if vocabulary.get(token["content"]) != token["id"])
    if new != list(range(len(vocabulary), len(vocabulary) + len(new))):
        return "added tokens with gaps between their ids"
    decoder = settings.get("added_tokens_decoder")
    return None if decoder is None or len(decoder) == len(added) else "added tokens are listed twice"


def _holds(part: Any, wanted: dict[str, Any]) -> bool:
    """Whether a JSON object has the wanted entries."""
    return isinstance(part, dict) and all(part.get(key) == value for key, value in wanted.items())


def _refuses_tokens(model: dict[str, Any], settings: dict[str, Any], is_rebuilt: bool) -> str | None:
    """A token that tokenizer_config.json describes in another way than tokenizer.json: transformers would change it."""
    added = {token["content"]: token for token in model.get("added_tokens", [])}
    for index, token in (settings.get("added_tokens_decoder") or {}).items():
        stored = added.get(token.get("content")) if isinstance(token, dict) else None
        if stored is None or str(stored["id"]) != str(index) or any(stored.get(f) != token.get(f) for f in _FLAGS):
            return f"token {index} differs"
    special = [settings[key] for key in NAMED_TOKENS if settings.get(key) is not None]
    for value in [*special, *_extra(settings)]:
        stored = added.get(_content(value)) if isinstance(value, str | dict) else None
        if isinstance(value, str) and stored is None and not is_rebuilt:
            continue  # it is added, by transformers and here
        if stored is None or not stored.get("special") or any(stored.get(flag) for flag in _FLAGS[:-1]):
            return f"special token {value!r} is not stored as one"
        if isinstance(value, dict) and any(stored.get(flag) != value.get(flag, False) for flag in _FLAGS[:-1]):
            return f"special token {value!r} differs"
    return None


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json, which is a string or an object that describes one."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _extra(settings: dict[str, Any]) -> list[Any]:
    """Further special tokens, under their newer or older key."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return list(extra) if isinstance(extra, list) else [extra]
