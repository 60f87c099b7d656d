"""What engines are known to do: the table, the choice of a format for an engine, and the docs that show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dfrot.errors import UnsupportedError
from dfrot.export.serving.command import ServedFolder, serving_command, serving_commands
from dfrot.export.serving.planning import plan_for
from dfrot.export.serving.promises import DECLARED, PREFERENCES, PROMISES, markdown, promise
from dfrot.export.targets import TARGETS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "export.md"
STORAGES = {storage.name for target in TARGETS.values() for storage in target.storages} | {"dense"}


def export_for(model: Path, engine: str, out: Path, *more: str) -> Result:
    from dfrot_cli.main import main

    return CliRunner().invoke(main, ["export", str(model), "--for", engine, "--out", str(out), *more])


def test_the_docs_show_the_table() -> None:
    assert markdown() in PAGE.read_text(encoding="utf-8")


def test_promises_speak_of_what_is_written() -> None:
    assert {known.storage for known in PROMISES} == STORAGES
    assert {known.engine for known in PROMISES} == set(PREFERENCES)
    for known in PROMISES:  # an exception never hides behind a row above it
        bits, sym = next(iter(known.w_bits or (4,))), known.w_sym is not False
        device = known.device or "cuda"
        for a_bits in known.a_bits:
            assert promise(known.engine, known.storage, bits, sym, a_bits, known.r4, device) is known
        if known.served != DECLARED:
            assert known.note


def test_a_format_is_chosen_and_its_command_written(pack: Callable[[str], Path], tmp_path: Path) -> None:
    ran = export_for(pack("w4a16-g32"), "vllm", tmp_path / "v")
    assert ran.exit_code == 0
    assert "for vllm: compressed-tensors rather than gptq" in ran.stdout
    assert "serve it from" in ran.stdout
    assert "warning" not in ran.stderr
    assert "vllm serve ." in (tmp_path / "v/README.md").read_text()
    record = json.loads((tmp_path / "v/stage.json").read_text())
    assert record["serving"] == {
        "engine": "vllm",
        "command": "vllm serve .",
        "why": "compressed-tensors rather than gptq",
        "warnings": [],
    }
    assert export_for(pack("w4a16-g32"), "llama.cpp", tmp_path / "l").exit_code == 0
    assert "llama-server -m ./model.gguf" in (tmp_path / "l/README.md").read_text()


def test_other_bits_are_announced_with_what_mends_them(pack: Callable[[str], Path], tmp_path: Path) -> None:
    ran = export_for(pack("w4a4-sym"), "vllm", tmp_path / "v")
    assert "warning: vllm on cuda serves it as W4A16" in ran.stderr
    assert "--linear-backend humming mends it" in ran.stderr
    assert "vllm serve . --linear-backend humming" in (tmp_path / "v/README.md").read_text()


def test_the_cache_is_left_to_the_engine(pack: Callable[[str], Path]) -> None:
    """Also where the format holds no KV bits: engines have a flag of their own, or 16 bits."""
    plan = plan_for(pack("w4a16kv4"), "vllm")
    assert plan.scheme.name == "w4a16"
    assert serving_command("vllm", plan.served, "NAME") == "vllm serve NAME --kv-cache-dtype int4_per_token_head"
    assert any("keeps the KV cache in 16 bits, the checkpoint in 4; on cuda --kv" in text for text in plan.warnings)
    assert "kv" not in serving_command("sglang", plan_for(pack("w4a16kv4"), "sglang").served)


def test_what_an_engine_refuses_is_refused(pack: Callable[[str], Path], tmp_path: Path) -> None:
    ran = export_for(pack("w4a4-sym"), "sglang", tmp_path / "s")
    assert ran.exit_code == 2
    assert "sglang does not serve w4a4-sym" in ran.stderr
    assert "--force" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()
    assert export_for(pack("w4a4-sym"), "sglang", tmp_path / "s", "--force").exit_code == 0
    with pytest.raises(UnsupportedError, match="vllm loads compressed-tensors and gptq"):
        plan_for(pack("w4a16-g32"), "vllm", "gguf")
    with pytest.raises(UnsupportedError, match="vllm does not serve w4a16-g32-wasym from gptq: knows symmetric GPTQ"):
        plan_for(pack("w4a16-g32-wasym"), "vllm", "gptq")
    assert plan_for(pack("w4a16-g32-wasym"), "vllm").to == "compressed-tensors"


def test_transformers_gets_the_option_that_packed_zero_points_need(pack: Callable[[str], Path]) -> None:
    """Where another format is served without one, that is chosen."""
    plan = plan_for(pack("w4a16-g32-wasym"), "transformers", "compressed-tensors")
    assert "import CompressedTensorsConfig, pipeline;" in serving_command("transformers", plan.served)
    assert "dequantize=True" in serving_command("transformers", plan.served)
    assert plan_for(pack("w4a16-g32-wasym"), "transformers").to == "gptq"


@pytest.mark.parametrize("engine", PREFERENCES)
def test_every_engine_has_a_command(engine: str) -> None:
    folder = ServedFolder(engine, PREFERENCES[engine][0], "w4a16-g32")
    assert "NAME" in serving_command(engine, folder, "NAME")


def test_a_draft_is_served_as_its_config_says() -> None:
    proposal = {"proposal_methods": [{"speculative_tokens": 7}]}
    config = {"speculators_model_type": "dflash", "speculators_config": proposal}
    ((engine, command),) = serving_commands("speculators", "me/draft", target="me/model", config=config)
    assert engine == "vLLM"
    wanted = {"model": "me/draft", "num_speculative_tokens": 7, "method": "dflash"}
    assert command == f"vllm serve me/model --speculative-config '{json.dumps(wanted)}'"
