"""The files of a tokenizer travel along; token ids beyond the embedding are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfrot.data.tokenizer import TOKENIZER_FILES, copy_tokenizer, require_known_ids
from dfrot.errors import InputError


def test_every_file_and_further_templates_are_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    names = [*TOKENIZER_FILES, "additional_chat_templates/tools.jinja"]
    for name in names:
        (source / name).write_text(name)
    (source / "additional_chat_templates" / "notes.txt").write_text("no template")
    (source / "modeling.py").write_text("no code is copied")
    copy_tokenizer(source, out)
    copied = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert copied == sorted(names)
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == names[-1]


def test_ids_beyond_the_embedding(tmp_path: Path) -> None:
    require_known_ids(torch.tensor([[0, 39]]), 40, tmp_path)
    require_known_ids(torch.tensor([], dtype=torch.long), 40)
    with pytest.raises(InputError, match="the tokenizer makes id 41, the embedding has 40 rows") as caught:
        require_known_ids(torch.tensor([[0, 41, 40]]), 40, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)
