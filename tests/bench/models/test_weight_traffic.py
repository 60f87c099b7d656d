"""Bytes of weights that a token reads, against what the files hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dfrot.bench.models.weight_traffic import ReadProbe, weight_bytes_per_token
from dfrot.checkpoint import Checkpoint
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings


def stored(folder: Path) -> dict[str, int]:
    return {name: entry.end - entry.start for name, entry in Checkpoint.open(folder).entries.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_of_a_16_bit_model_all_but_an_embedding_of_its_own(small_llama: Callable[..., Path], tied: bool) -> None:
    folder = small_llama(tie_word_embeddings=tied)
    sizes = stored(folder)
    read = sum(sizes.values()) - (0 if tied else sizes["model.embed_tokens.weight"])
    assert weight_bytes_per_token(load_model(folder)) == read


def test_of_a_packed_model_the_layout_of_the_kernels(small_llama: Callable[..., Path], tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    settings = QuantizeSettings(scheme=QuantScheme.parse("w4a16-g32"), algorithm="rtn")
    quantize(small_llama(tie_word_embeddings=True), None, packed, settings)
    files = sum(stored(packed).values())
    read = weight_bytes_per_token(load_model(packed))
    assert files <= read <= 1.1 * files  # rows are filled up to multiples of 16


def test_the_probe_reads() -> None:
    assert 1e8 < ReadProbe().sample() < 1e13
