"""Fingerprints of targets."""

from __future__ import annotations

from pathlib import Path

from dfrot.vision.fingerprint import checkpoint_fingerprint


def test_fingerprints_notice_tokenizer_and_template(reference: Path, tmp_path: Path) -> None:
    for file in reference.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    assert checkpoint_fingerprint(tmp_path) == checkpoint_fingerprint(reference)
    (tmp_path / "chat_template.jinja").unlink()
    assert checkpoint_fingerprint(tmp_path) != checkpoint_fingerprint(reference)
