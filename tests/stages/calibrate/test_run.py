from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfrot.arch import open_described
from dfrot.calib.calibration import Calibration
from dfrot.errors import ExistsError, InputError, MismatchError
from dfrot.files import read_json
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.calibrate.merge import merge
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def model(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model"), online=True)


def settings(text: Path, **changes: object) -> CalibrateSettings:
    return CalibrateSettings(**{"dataset": str(text), "samples": 3, "seqlen": 20, **changes})  # type: ignore[arg-type]


def opened(cal: Path, model: Path) -> Calibration:
    checkpoint, arch = open_described(model)
    return Calibration.open(cal, arch, checkpoint.digest())


def test_hessians_are_those_of_a_plain_forward_pass(model: Path, text: Path, tmp_path: Path) -> None:
    record = calibrate(model, tmp_path / "cal", settings(text))
    cal = opened(tmp_path / "cal", model)
    checkpoint, arch = open_described(model)
    runner = BlockRunner(checkpoint, arch)
    hidden = runner.embed(cal.tokens())
    for layer in range(arch.n_layers):
        block = runner.block(layer)
        seen: dict[str, torch.Tensor] = {}
        for tap in arch.taps():
            module = block.get_submodule(tap.name)
            module = getattr(module, "linear", module)  # behind the online rotation
            module.register_forward_pre_hook(lambda _, args, name=tap.name, seen=seen: seen.update({name: args[0]}))
        hidden = runner.run(block, hidden)
        stats = cal.stats(f"layer-{layer:05d}")
        for name, x in seen.items():
            rows = x.reshape(-1, x.shape[-1])
            expected = 2 / len(rows) * rows.T @ rows
            hessian = stats[name].hessian
            assert hessian is not None
            torch.testing.assert_close(hessian, expected, rtol=1e-4, atol=1e-5)
            assert stats[name].count == 60
    assert "model.layers.2.mlp.down_proj" in record["taps"]
    assert record["taps"]["lm_head"]["rows"] == 60


def test_same_request_same_bytes_wherever_it_is_written(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for out in (tmp_path / "a", tmp_path / "elsewhere" / "b"):
        calibrate(model, out, settings(text))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["head.safetensors", *(f"layer-0000{i}.safetensors" for i in range(3)), "stage.json"] + [
        "tokens.safetensors"
    ]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "elsewhere" / "b" / name).read_bytes(), name


def test_chunked_run_gives_the_same_statistics(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(model, tmp_path / "whole", settings(text))
    monkeypatch.setattr("dfrot.calib.taps.CHUNK_BYTES", 1)
    calibrate(model, tmp_path / "chunked", settings(text))
    for stem in ("layer-00000", "layer-00002", "head"):
        a, b = opened(tmp_path / "whole", model).stats(stem), opened(tmp_path / "chunked", model).stats(stem)
        for tap in a:
            torch.testing.assert_close(a[tap].hessian, b[tap].hessian, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(a[tap].absmax, b[tap].absmax, rtol=1e-4, atol=1e-5)


def test_merged_calibrations(model: Path, text: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        calibrate(model, tmp_path / f"part{seed}", settings(text, seed=seed))
    parts = [tmp_path / "part0", tmp_path / "part1"]
    record = merge(model, parts, tmp_path / "merged")
    merged, first, second = (opened(p, model) for p in (tmp_path / "merged", *parts))
    assert torch.equal(merged.tokens(), torch.cat([first.tokens(), second.tokens()]))
    stats = merged.stats("layer-00001")["mlp.down_proj"]
    assert stats.count == 120
    halves = [one.stats("layer-00001")["mlp.down_proj"].hessian for one in (first, second)]
    torch.testing.assert_close(stats.hessian, (halves[0] + halves[1]) / 2)  # type: ignore[operator]
    assert record["taps"]["lm_head"]["rows"] == 120
    with pytest.raises(MismatchError, match="twice"):
        merge(model, [parts[0], parts[0]], tmp_path / "again")
    calibrate(model, tmp_path / "short", settings(text, seqlen=10))
    with pytest.raises(MismatchError, match="seqlen"):
        merge(model, [parts[0], tmp_path / "short"], tmp_path / "again")
    with pytest.raises(InputError, match="two or more"):
        merge(model, parts[:1], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_without_hessians(model: Path, text: Path, tmp_path: Path) -> None:
    calibrate(model, tmp_path / "cal", settings(text, hessians=False))
    assert opened(tmp_path / "cal", model).stats("head")["lm_head"].hessian is None


def test_tokens_alone(model: Path, text: Path, tmp_path: Path) -> None:
    """All that error propagation needs: the same tokens, and a refusal where statistics are asked for."""
    calibrate(model, tmp_path / "full", settings(text))
    calibrate(model, tmp_path / "tokens", settings(text, statistics=False))
    full, tokens = (opened(tmp_path / name, model) for name in ("full", "tokens"))
    assert torch.equal(full.tokens(), tokens.tokens())
    with pytest.raises(InputError, match="tokens only"):
        tokens.stats("layer-00000")


def test_refusals_leave_nothing_behind(
    model: Path, text: Path, build: Build, rewrite: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "results" / "cal"
    with pytest.raises(InputError, match="too short"):
        calibrate(model, out, settings(text, seqlen=100_000))
    with pytest.raises(InputError, match="samples"):
        settings(text, samples=0)
    damaged = build(tmp_path / "damaged")
    rewrite(damaged, model__embed_tokens__weight=torch.full((300, 32), float("nan"), dtype=torch.bfloat16))
    with pytest.raises(InputError, match=r"model.embed_tokens.weight: holds NaN"):
        calibrate(damaged, out, settings(text))
    overflowing = build(tmp_path / "overflowing", dtype=torch.float32)
    rewrite(overflowing, model__layers__1__mlp__down_proj__weight=torch.full((32, 48), 3e38))
    with pytest.raises(InputError, match="NaN or Inf"):
        calibrate(overflowing, out, settings(text))
    assert not out.exists()
    out.mkdir(parents=True)
    with pytest.raises(ExistsError, match="`overwrite`"):
        calibrate(model, out, settings(text))
    assert list(out.iterdir()) == []


def test_resume_of_a_finished_run_returns_its_record(model: Path, text: Path, tmp_path: Path) -> None:
    first = calibrate(model, tmp_path / "cal", settings(text))
    before = (tmp_path / "cal" / "stage.json").stat().st_mtime_ns
    assert calibrate(model, tmp_path / "cal", settings(text), resume=True) == first
    assert (tmp_path / "cal" / "stage.json").stat().st_mtime_ns == before
    assert read_json(tmp_path / "cal" / "stage.json") == first
