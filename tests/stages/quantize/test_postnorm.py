"""Architectures without R1, Gemma 2 and 3 and OLMo 2: from a folder to a packed model that generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import open_described
from dfrot.checkpoint import Checkpoint
from dfrot.draft.models.build import build as build_draft
from dfrot.draft.models.build import config_for
from dfrot.draft.training.init_from_target import init_from_target
from dfrot.errors import UnsupportedError
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.compare.run import compare
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Build = Callable[..., Path]
GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}
KINDS: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0},
    "gemma3_text": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_folder_to_generated_text(
    build: Build, rewrite: Callable[..., None], text: Path, tmp_path: Path, kind: str
) -> None:
    source = build(tmp_path / "source", kind, num_hidden_layers=2, **KINDS[kind])
    embedding = Checkpoint.open(source).read("model.embed_tokens.weight")
    rewrite(source, model__embed_tokens__weight=embedding / 8)  # or the blocks would add next to nothing to them
    record = rotate(source, tmp_path / "rotated", RotateSettings("hadamard", str(text)))
    assert record["gate"]["logits"]["top1_agreement"] > 0.9
    calibrate(tmp_path / "rotated", tmp_path / "cal", CalibrateSettings(str(text), samples=8, seqlen=48))
    for name in ("w4a4kv4", "w8a16", "fake"):
        scheme = QuantScheme.parse("w4a4kv4" if name == "fake" else name)
        quantize(tmp_path / "rotated", tmp_path / "cal", tmp_path / name, QuantizeSettings(scheme, fake=name == "fake"))
    models = [source, tmp_path / "w4a4kv4", tmp_path / "fake", tmp_path / "w8a16"]
    results = evaluate(models, PerplexitySettings(str(text), seqlen=48, windows=4, kl=True))["results"]
    _, packed, fake, weights = results
    assert packed["perplexity"] == pytest.approx(fake["perplexity"], rel=1e-3)
    assert weights["kl"] < 1e-3 < packed["kl"] < 1
    loaded = load_model(tmp_path / "w4a4kv4", "float32")
    prompt = torch.arange(3, 20)[None]  # longer than the window
    out = loaded.generate(prompt, max_new_tokens=5, do_sample=False)
    with torch.no_grad():
        assert torch.equal(loaded(out, use_cache=False).logits[:, 16:-1].argmax(-1), out[:, 17:])
    target, ids = Target(loaded), prompt[0].tolist()
    draft = build_draft(config_for(open_described(source)[1], "dream"))
    init_from_target(draft, target)
    expected = plain(target, ids, StopCriteria(24), Sampling()).tokens
    assert expected[:5] == out[0, 17:].tolist()
    for shape in (TreeShape(3), TreeShape(4, 3, 10)):
        assert speculative(target, draft, ids, StopCriteria(24), Sampling(), shape).tokens == expected
    assert ("lm_head.weight" in Checkpoint.open(tmp_path / "w4a4kv4")) == (kind == "olmo2"), "tied stays tied"


def test_what_is_about_r1_says_so(build: Build, tmp_path: Path) -> None:
    source = build(tmp_path / "source", "gemma2", num_hidden_layers=2, **KINDS["gemma2"])
    with pytest.raises(UnsupportedError, match="learned gain"):
        compare(source, tmp_path / "table", CompareSettings())
    with pytest.raises(UnsupportedError, match="learned gain"):
        Subject(source)
