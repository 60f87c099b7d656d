"""`dfq draft export --check`: engines that decode with a draft, and what is said of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dfrot.errors import InputError
from dfrot.export.draft.check import check_draft
from dfrot.export.draft.settings import DraftCheckSettings
from dfrot.export.serving import environments

FAKE = Path(__file__).parents[2] / "export" / "serving" / "fake_driver.py"
COUNT, LENGTH = 2, 24


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    """A random eagle3 draft of the shipped model."""
    import torch

    from dfrot.arch import open_described
    from dfrot.draft.models.build import build, config_for
    from dfrot.draft.store import save_draft
    from dfrot.vision.fingerprint import checkpoint_fingerprint

    torch.manual_seed(0)
    mark = checkpoint_fingerprint(reference)
    config = config_for(open_described(reference)[1], "eagle3", intermediate_size=64, target_fingerprint=mark)
    folder = tmp_path_factory.mktemp("draft")
    save_draft(folder, build(config))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> DraftCheckSettings:
    return DraftCheckSettings("stdlib", COUNT, 16, LENGTH, engines=tmp_path / "engines", time_limit=60.0)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, settings: DraftCheckSettings, tmp_path: Path) -> Callable[..., None]:
    """engine(rounds, accepted): llama.cpp is set up, and answers that."""

    def install(rounds: int, accepted: int) -> None:
        answer = {"tokens": [list(range(40, 40 + LENGTH))] * COUNT, "rounds": rounds, "drafted": 0}
        (tmp_path / "answer.json").write_text(json.dumps({**answer, "accepted": accepted}))
        fake = replace(
            environments.DRAFT_ENGINES["llama.cpp"], script=str(FAKE), variables={"FAKE": str(tmp_path / "answer.json")}
        )
        monkeypatch.setattr("dfrot.export.draft.check.DRAFT_ENGINES", {"llama.cpp": fake})
        binaries = settings.engines / "xllamacpp" / "bin"
        binaries.mkdir(parents=True, exist_ok=True)
        (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (binaries / "python").chmod(0o755)
        (settings.engines / "xllamacpp" / "installed.txt").touch()

    return install


def command(draft: Path, settings: DraftCheckSettings, *more: str) -> Result:
    from dfrot_cli.main import main

    few = ("--count", str(COUNT), "--prompt-tokens", "16", "--max-new-tokens", str(LENGTH))
    where = ("--model", "reference", "--draft", str(draft), "--engines", str(settings.engines))
    return CliRunner().invoke(main, ["draft", "export", *where, *few, *more])


def test_acceptance_is_compared_on_the_engines_text(
    draft: Path, reference: Path, settings: DraftCheckSettings, engine: Callable[..., None], tmp_path: Path
) -> None:
    """A random draft guesses nothing: an engine that accepts nothing does as dfq does, any other does not."""
    engine(46, 0)
    report = check_draft(reference, draft, (), settings)
    (row,) = report["rows"]
    assert (row["verdict"], row["kept"], row["tau"], row["replayed"], row["ratio"]) == ("as dfq", True, 1, 1, 1)
    assert row["same_tokens"][1] == COUNT * LENGTH
    assert (report["chain"], report["arch"], row["versions"]) == (3, "eagle3", {"fake": "1"})
    engine(23, 23)
    ran = command(draft, settings, "--check", "llama.cpp", "--out", str(tmp_path / "report.json"))
    assert ran.exit_code == 1
    assert "llama.cpp accepts 2.000 tokens per pass, dfq 1.000 on the same text" in ran.stderr
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["verdict"] == "something else"
    engine(0, 0)
    (row,) = check_draft(reference, draft, (), settings)["rows"]
    assert (row["verdict"], row["detail"]) == ("something else", "drafted nothing")


def test_what_is_missing_or_wrong_is_said(draft: Path, reference: Path, settings: DraftCheckSettings) -> None:
    rows = check_draft(reference, draft, (), settings)["rows"]
    assert {row["engine"]: row["verdict"] for row in rows} == dict.fromkeys(environments.DRAFT_ENGINES, "not set up")
    with pytest.raises(InputError, match=r"no such engine; choose of vllm, llama\.cpp"):
        check_draft(reference, draft, ("sglang",), settings)
    assert "engines are named with --check only" in command(draft, settings, "vllm").stderr
    assert "give --out" in command(draft, settings).stderr


@pytest.mark.slow  # each starts an engine of its own: up to two minutes
@pytest.mark.parametrize("name", environments.DRAFT_ENGINES)
@pytest.mark.parametrize("arch", ["eagle3", "dflash"])
def test_real_engines(name: str, arch: str, settings: DraftCheckSettings, reference: Path, tmp_path: Path) -> None:
    """A draft of the shipped model that starts from its blocks, on a target that both engines read."""
    from dfrot.export.check import quantize_by_rounding
    from dfrot.quant.scheme import QuantScheme
    from dfrot.stages.draft.settings import DataSettings, DraftSettings, TrainSettings
    from dfrot.stages.draft.train import train

    engines = Path("build/engines")
    if environments.find_environments(engines, (name,), environments.DRAFT_ENGINES)[name] is None:
        pytest.skip(f"{name} is not set up: make engines")
    target = quantize_by_rounding(reference, QuantScheme.parse("w4a16-g32"), tmp_path / "target")
    data, steps = DataSettings(samples=64, held_out=4, seqlen=96), TrainSettings(epochs=1, evaluations=1)
    train(target, tmp_path / "draft", DraftSettings(arch=arch, draft_vocab=1000, data=data, train=steps))
    wanted = replace(settings, prompts=4, new_tokens=64, engines=engines, time_limit=600.0)
    (row,) = check_draft(target, tmp_path / "draft", (name,), wanted)["rows"]
    assert row["verdict"] == "as dfq", row
