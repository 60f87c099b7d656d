"""Recipes: what is refused, what the message says, and that every shipped recipe is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfrot.errors import InputError
from dfrot.hub import ALIASES
from dfrot.recipe import document
from dfrot.recipe.recipe import load, parse

MEASURED = ("reference", "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


def test_stages_run_in_their_order_whatever_the_file_says(write: Any) -> None:
    lines = write().read_text().strip().splitlines()
    recipe = load(write("\n".join([*lines[:3], lines[6], lines[5], lines[4], lines[3]])))
    assert list(recipe.stages) == ["rotate", "calibrate", "quantize", "eval"]


def test_dataset_and_seed_reach_every_stage(write: Any) -> None:
    recipe = load(write(), ["seed=7", "eval.dataset=wikitext2"])
    assert recipe.stages["rotate"].seed == recipe.stages["calibrate"].seed == 7
    assert recipe.stages["rotate"].dataset == "stdlib"
    assert recipe.stages["eval"].dataset == "wikitext2"


def test_effort_high_tunes_on_the_text_of_the_recipe(write: Any) -> None:
    assert load(write()).stages["quantize"].tune_dataset is None
    assert load(write(), ["quantize.effort=high"]).stages["quantize"].tune_dataset == "stdlib"
    named = load(write(), ["quantize.effort=high", "quantize.tune_dataset=wikitext2"])
    assert named.stages["quantize"].tune_dataset == "wikitext2"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("quantize.shceme=w4a4", ["quantize.shceme", "unknown key", "did you mean scheme?"]),
        ("quantise={}", ["quantise", "did you mean quantize?"]),
        ("rotate.processors=1", ["rotate.processors", "unknown key"]),
        ("rotate.seqlen=many", ["rotate.seqlen", "'many'", "a whole number"]),
        ("rotate.online=1", ["rotate.online", "true or false"]),
        ("rotate.gamma=[1]", ["rotate.gamma", "a number or text"]),
        ("calibrate.samples=2.5", ["calibrate.samples", "a whole number"]),
        ("calibrate.samples=0", ["calibrate", "at least 1"]),
        ("rotate.method=spin", ["rotate", "spin", "dfrot"]),
        ("quantize.keep=lm_head", ["quantize.keep", "a list"]),
        ("quantize.damping=.nan", ["quantize.damping", "a number"]),
        ("calibrate=null", ["quantize", "needs a calibration"]),
        ("quantize=null", ["calibrate", "nothing uses it"]),
        ("quantize.effort=quick", ["quick reads no calibration", "remove the section calibrate"]),
        ("draft_eval={}", ["draft_eval", "add a section draft"]),
        ("export={to: gguf}", ["export", "online", "rotate.online"]),
        ("export={to: gguf, online_r4: true}", ["export", "4-bit KV", "w4a16"]),
        ("export={}", ["export.to", "is missing"]),
        ("eval.checkpoints=[fixed]", ["eval.checkpoints", "fixed", "packed"]),
        ("model=null", ["model", "is missing"]),
        ("name=../x", ["name", "cannot name a folder"]),
        ("seed=-1", ["seed", "negative"]),
        ("expect.packed.perplexty={}", ["packed.perplexty", "did you mean packed.perplexity?"]),
        ("expect.packed.perplexity.status=hoped", ["status", "measured or not yet reproduced"]),
        ("expect.packed.perplexity.source=null", ["source", "is missing"]),
        ("name.x=1", ["name is a value"]),
        ("quantize", ["write it like"]),
        ("seed={", ["not readable as YAML"]),
    ],
)
def test_refusals_name_the_key_and_the_remedy(write: Any, change: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(write(), [change])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_complete(path: Path) -> None:
    recipe = load(path)
    assert recipe.name == path.stem
    assert recipe.model in {*ALIASES, "reference"}
    assert recipe.stages["quantize"].scheme.name == path.stem[len(recipe.model) + 1 :] or recipe.model == "reference"
    for expectation in recipe.expect.values():
        assert expectation.status == ("measured" if recipe.model in MEASURED else "not yet reproduced")
    assert recipe.expect or recipe.notes, "a recipe that expects nothing says why"


def test_every_promised_recipe_is_there() -> None:
    models = ("llama2-7b", "llama3-8b", "llama3-70b", "mistral-7b", "qwen2.5-7b", "qwen3-8b", "reference")
    assert {path.stem for path in RECIPES} >= {
        f"{model}-{scheme}" for model in models for scheme in ("w4a4kv4", "w4a16")
    }


def test_notes_and_expectations_do_not_change_the_request(write: Any) -> None:
    base = load(write())
    assert load(write(), ["notes=other", "expect.packed.perplexity.value=1"]).digest == base.digest
    assert load(write(), ["quantize.damping=0.02"]).digest != base.digest
    assert parse(document.read(write()), "x").digest == base.digest
