"""From plain values to settings: the settings classes are the schema, their defaults the recipe's."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.table import TableScheme
from dfrot.recipe.convert import build
from dfrot.recipe.recipe import load
from dfrot.recipe.stages import STAGES
from dfrot.settings import settings_of
from dfrot.stages.calibrate.settings import CalibrateSettings

REQUIRED: dict[str, dict[str, Any]] = {"outliers_fix": {"search": True}, "export": {"to": "gguf"}}


@pytest.mark.parametrize("name", STAGES)
def test_a_section_without_keys_has_the_defaults_of_the_settings(name: str) -> None:
    settings, values = STAGES[name].settings, REQUIRED.get(name, {})
    built, direct = asdict(build(settings, values, name)), asdict(settings(**values))
    if name == "outliers_fix":  # nested settings are built from their own class, whose perplexity is measured or not
        built["outliers"].pop("perplexity"), direct["outliers"].pop("perplexity")
    assert built == direct


@pytest.mark.parametrize("name", STAGES)
def test_a_section_refuses_what_the_settings_refuse(name: str) -> None:
    settings = STAGES[name].settings
    for field, known in settings_of(settings).items():
        if known.minimum is not None and isinstance(getattr(settings, field, None), int):
            with pytest.raises(InputError, match=f"here: `{field}` "):
                build(settings, {**REQUIRED.get(name, {}), field: int(known.minimum) - 1}, "here")


def test_the_error_of_a_setting_stays_data() -> None:
    with pytest.raises(InputError) as caught:
        build(CalibrateSettings, {"samples": 0}, "x.yaml: calibrate")
    assert str(caught.value) == "x.yaml: calibrate: `samples` 0: must be at least 1"
    assert (caught.value.fields, caught.value.limit) == (("samples",), 1)


def test_a_table_is_a_number_a_name_or_its_parts(write: Any) -> None:
    changes = ["quantize.embed=8", "quantize.head=4-g64-asym"]
    settings = load(write(), changes).stages["quantize"]
    assert (settings.embed, settings.head) == (TableScheme(8), TableScheme(4, 64, False))
    parts = load(write(), ["quantize.embed={bits: 4, group: 16}"]).stages["quantize"].embed
    assert parts == TableScheme(4, 16)
    assert not load(write()).stages["quantize"].embed.quantized
    for wrong in ("5", "true", "[8]"):
        with pytest.raises((UnsupportedError, InputError), match=r"quantize.embed"):
            load(write(), [f"quantize.embed={wrong}"])


def test_a_scheme_is_a_name_or_its_parts(write: Any) -> None:
    recipe = load(write(), ["quantize.scheme={w_bits: 4, a_bits: 8, kv_bits: 4, kv_clip: 0.9}"])
    scheme = recipe.stages["quantize"].scheme
    assert (scheme.name, scheme.kv_clip) == ("w4a8kv4", 0.9)
    with pytest.raises(UnsupportedError, match=r"quantize.scheme.*w5x"):
        load(write(), ["quantize.scheme=w5x"])
