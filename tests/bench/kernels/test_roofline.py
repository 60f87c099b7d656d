"""The machine probes of the roofline."""

from __future__ import annotations

from pathlib import Path

from dfrot.bench.kernels import roofline


def test_cache_size_is_read_from_the_system(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "8M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert roofline.cache_bytes(tmp_path) == 8 << 20
    assert roofline.cache_bytes(tmp_path / "missing") == 32 << 20
