"""A language model inside a larger model: under other names, beside parts that look at images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from dfrot.errors import InputError

# what transformers takes for sizes that config.json leaves out, as LLaVA's published ones do
_LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8}
LEFT_OUT: dict[str, dict[str, int]] = {"llama": {**_LLAMA, "vocab_size": 32000}, "mistral": _MISTRAL}


def untie_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` whose head has weights of its own, in that of a language model inside too."""
    found = {**config, "tie_word_embeddings": False}
    if isinstance(inside := config.get("text_config"), dict):
        found["text_config"] = {**inside, "tie_word_embeddings": False}
    return found


@dataclass(frozen=True)
class Wrapper:
    """What surrounds a language model of the table. All names are those that transformers uses in memory, which are
    also those that dfq writes; the language model's own are the ones of its description (`model.layers.0 ...`).

    inside: the module that holds what the description calls `model`. outside: prefixes of what is not the language
    model. writers: patterns of linears there whose output joins the residual stream, so that R1 goes into their rows
    and bias. vectors: tensors [hidden] that join it as they are. published: (prefix as published, prefix in memory).
    languages: model_type of the language model's configuration -> that of the description which serves it, where
    they differ; text alone passes the one exactly as the other.
    """

    model_type: str
    inside: str
    outside: tuple[str, ...]
    writers: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    languages: Mapping[str, str] = field(default_factory=dict)

    def is_outside(self, name: str) -> bool:
        """Whether a tensor or module is no part of the language model."""
        return name.startswith(self.outside)

    def writes(self, name: str) -> bool:
        """Whether tensor `name` is the weight or bias of a writer, or a vector of the residual stream."""
        return name in self.vectors or any(fnmatchcase(name.rpartition(".")[0], one) for one in self.writers)

    def described(self, name: str) -> str:
        """The description's name of what a file or transformers calls `name`."""
        for old, new in self.published:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        return f"model.{name.removeprefix(f'{self.inside}.')}" if name.startswith(f"{self.inside}.") else name

    def module(self, name: str) -> str:
        """Where transformers keeps what the description calls `name`."""
        if self.is_outside(name) or not name.startswith("model."):
            return name
        return f"{self.inside}.{name.removeprefix('model.')}"

    def language(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The language model's own `config.json`. Raises InputError where it has none."""
        found = config.get("text_config", {key: value for key, value in config.items() if key != "vision_config"})
        if not isinstance(found, dict):
            raise InputError(f"config.json: text_config is {type(found).__name__}, an object is needed")
        kind = str(found.get("model_type", ""))
        kind = self.languages.get(kind, kind)
        own = {**LEFT_OUT.get(kind, {}), **found, "model_type": kind}
        for key in ("rope_parameters", "rope_scaling"):  # text has one position, whose three parts are equal
            if isinstance(own.get(key), dict):
                own[key] = {k: v for k, v in own[key].items() if not k.startswith("mrope")}
                for name in ("type", "rope_type"):
                    if own[key].get(name) == "mrope":
                        own[key][name] = "default"
        if own.get("rope_scaling") in ({"type": "default"}, {"rope_type": "default"}):
            own["rope_scaling"] = None
        if "tie_word_embeddings" in config:
            own["tie_word_embeddings"] = config["tie_word_embeddings"]
        return own
