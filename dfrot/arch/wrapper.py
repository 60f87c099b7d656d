"""A language model inside a VLM: under other names, beside a vision tower and a projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from dfrot.arch.defaults import with_omitted_sizes
from dfrot.errors import InputError


def untie_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` whose head has weights of its own, also in the `text_config` of a VLM."""
    untied = {**config, "tie_word_embeddings": False}
    if isinstance(text_config := config.get("text_config"), dict):
        untied["text_config"] = {**text_config, "tie_word_embeddings": False}
    return untied


@dataclass(frozen=True)
class Wrapper:
    """The VLM around a language model of the table. All names here are those that transformers uses in memory, which
    are also those that dfq writes; the language model's own are those of its description (`model.layers.0 ...`)."""

    model_type: str
    """As `config.json` names the VLM."""
    inside: str
    """The module that holds what the language model's description calls `model`."""
    outside: tuple[str, ...]
    """Prefixes of everything that is not the language model."""
    writers: tuple[str, ...]
    """Patterns of linears outside whose output joins the residual stream: R1 goes into their rows and bias."""
    vectors: tuple[str, ...] = ()
    """Tensors [hidden] outside that join the residual stream as they are."""
    published: tuple[tuple[str, str], ...] = ()
    """(prefix in published files, prefix in memory)."""
    languages: Mapping[str, str] = field(default_factory=dict)
    """model_type of the `text_config` -> model_type of the description that serves it, where they differ; for text
    alone the two compute the same."""

    def is_outside(self, name: str) -> bool:
        """Whether a tensor or module is no part of the language model."""
        return name.startswith(self.outside)

    def writes(self, name: str) -> bool:
        """Whether tensor `name` is the weight or bias of a writer, or a vector of the residual stream."""
        module = name.rpartition(".")[0]
        return name in self.vectors or any(fnmatchcase(module, pattern) for pattern in self.writers)

    def described(self, name: str) -> str:
        """The description's name for what a file or transformers calls `name`."""
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
        text = config.get("text_config", {key: value for key, value in config.items() if key != "vision_config"})
        if not isinstance(text, dict):
            raise InputError(f"config.json: text_config is {type(text).__name__}, an object is needed")
        named = str(text.get("model_type", ""))
        text_type = f"{named}_text" if named == self.model_type and named in self.languages else named
        language = {**with_omitted_sizes(text, text_type), "model_type": self.languages.get(named, named)}
        _use_one_dimensional_positions(language)
        if "tie_word_embeddings" in config:
            language["tie_word_embeddings"] = config["tie_word_embeddings"]
        return language


def _use_one_dimensional_positions(config: dict[str, Any]) -> None:
    """Replace RoPE over three dimensions (mrope): the three positions of text are equal."""
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(config.get(key), dict):
            config[key] = {k: v for k, v in config[key].items() if not k.startswith("mrope")}
            for name in ("type", "rope_type"):
                if config[key].get(name) == "mrope":
                    config[key][name] = "default"
    if config.get("rope_scaling") in ({"type": "default"}, {"rope_type": "default"}):
        config["rope_scaling"] = None
