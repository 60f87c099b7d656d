"""The tiny checkpoints of tests/runtime, with a tokenizer beside them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme


def _runtime() -> ModuleType:
    file = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("runtime_conftest", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_tokenizer(folder: Path, alphabet: str = "abcdefghijklmnopqrstuvwxyz .,\n", bos: bool = True) -> Path:
    """One token per character; `<s>` (id 0) at the start when bos."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "<unk>": 1} | {letter: 2 + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    module = _runtime()
    return SimpleNamespace(build=module.build, pack=module.pack, add_tokenizer=add_tokenizer)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, kit: SimpleNamespace) -> Path:
    return kit.add_tokenizer(kit.build(tmp_path_factory.mktemp("evaluate") / "source"))


@pytest.fixture(scope="session")
def packed(source: Path, kit: SimpleNamespace) -> Path:
    return kit.pack(source, source.parent / "packed", DfqConfig(QuantScheme.parse("w4a4kv4")))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(3)
    letters = "".join(chr(97 + int(i)) for i in torch.randint(0, 26, (330,), generator=generator))
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(letters)
    return file
