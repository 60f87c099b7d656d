"""Who races: dfq's checkpoints of one 16-bit folder, and every engine that is set up, or why it is not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.arch import describe
from dfrot.errors import DfqError, InputError
from dfrot.files import file_sha256
from dfrot.inputs import open_model
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import FULL
from dfrot.race.contenders import ENGINES
from dfrot.race.driver_process import ContenderError, loop_command
from dfrot.race.gguf_bits import gguf_bits
from dfrot.race.prepare import Workshop, exported
from dfrot.runtime.load import check_folder

WEIGHTS = (".safetensors", ".gguf", ".bin", ".data", ".onnx", ".xml")
NO_WEIGHTS = ("openvino_tokenizer", "openvino_detokenizer")


@dataclass(frozen=True)
class Contender:
    """A model in an engine, ready to start."""

    name: str
    """What the table calls it."""
    engine: str
    """`dfq`, or one of `contenders.ENGINES`."""
    path: Path
    """Its model."""
    command: tuple[str, ...]
    """Starts its process."""
    bits: dict[str, Any]
    """Bits of `weights`, `activations`, `kv`, `head`, `embedding`."""

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of its weights."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(
            file.stat().st_size
            for file in files
            if file.is_file() and file.suffix in WEIGHTS and not file.name.startswith(NO_WEIGHTS)
        )


def by_source(models: Sequence[Path], packed: Sequence[Path]) -> dict[Path, list[Path]]:
    """Which packed folders belong to which 16-bit folder: to the one of the same sizes and tokenizer.

    Raises InputError for a packed folder that belongs to none, or to several."""
    if not models:
        raise InputError("no checkpoint; give `models`", field="models")
    identities = {model: _identity(model) for model in models}
    found: dict[Path, list[Path]] = {model: [] for model in models}
    for folder in packed:
        identity = _identity(folder)
        owners = [model for model, other in identities.items() if other == identity]
        if len(owners) != 1:
            problem = "none of `models` has" if not owners else "several of `models` have"
            raise InputError(
                f"{folder}: {problem} its sizes and tokenizer; give it with its own 16-bit folder alone",
                field="models",
                file=folder,
            )
        found[owners[0]].append(folder)
    return found


def _identity(folder: Path) -> tuple[Any, ...]:
    """What a 16-bit folder and everything made from it share: kind, sizes, layers, and the tokenizer's digest."""
    checkpoint, _ = check_folder(folder)
    arch = describe(checkpoint.config)
    tokenizer = folder / "tokenizer.json"
    digest = file_sha256(tokenizer) if tokenizer.is_file() else None
    return (arch.spec.model_type, tuple(sorted(arch.sizes.items())), arch.n_layers, digest)


def dfq_contenders(source: Path, packed: Sequence[Path], cpus: Sequence[int]) -> list[Contender]:
    """dfq on the 16-bit folder and on every packed one."""
    command = tuple(loop_command(sys.executable, "dfq_engine", cpus))
    contenders = []
    for folder in (source, *packed):
        _, config = check_folder(folder)
        scheme = config.scheme.name if config is not None and config.scheme is not None else "16 bits"
        contenders.append(Contender(f"dfq {scheme}", "dfq", folder, command, _dfq_bits(config)))
    names = [contender.name for contender in contenders]
    return [
        contender
        if names.count(contender.name) == 1
        else replace(contender, name=f"{contender.name} ({contender.path.name})")
        for contender in contenders
    ]


def _dfq_bits(config: DfqConfig | None) -> dict[str, Any]:
    """Bits per value, scales included, of a dfq checkpoint."""
    bits: dict[str, Any] = {"weights": 16, "activations": 16, "kv": 16, "head": 16, "embedding": 16}
    if config is None or config.scheme is None:
        return bits
    scheme = config.scheme
    bits |= {"activations": scheme.a_bits, "kv": scheme.kv_bits}
    scales = 16 / scheme.w_group if scheme.w_group else 0
    bits["weights"] = scheme.w_bits + scales * (1 if scheme.w_sym else 1.5)
    bits["head"] = config.head.bits if config.head.quantized else 16 if "lm_head" in config.keep else scheme.w_bits
    bits["embedding"] = config.embed.bits
    return bits


def exported_contenders(
    shop: Workshop, packed: Sequence[Path], cpus: Sequence[int]
) -> tuple[list[Contender], dict[str, str]]:
    """vLLM on the packed checkpoints whose activations have 16 bits (it would leave others in 16 bits silently), and by
    name why one is absent."""
    contenders, absent = [], {}
    for ours in dfq_contenders(shop.source, packed, cpus)[1:]:
        if ours.bits["activations"] != FULL:
            continue
        name = f"vllm {ours.name.removeprefix('dfq ')}"
        try:
            python = shop.python("vllm")
            path = exported(shop, ours.path, open_model(ours.path).digest())
        except DfqError as error:
            absent[name] = str(error)
        else:
            peer = ENGINES["vllm"]
            command = tuple(loop_command(python, peer.driver, cpus, peer.variables))
            contenders.append(Contender(name, "vllm", path, command, {**ours.bits, "kv": FULL}))
    return contenders, absent


def peer_contenders(
    shop: Workshop, peers: Sequence[str], cpus: Sequence[int]
) -> tuple[list[Contender], dict[str, str]]:
    """The engines' contenders, their models made where they are missing, and by name why others are absent."""
    contenders, absent = [], {}
    for engine in peers:
        peer = ENGINES[engine]
        for variant in peer.variants:
            name = f"{engine} {variant.name}"
            try:
                python = shop.python(engine) if peer.own else Path(sys.executable)
                path = variant.prepare(shop)
            except ContenderError as error:
                absent[name] = str(error)
            except DfqError as error:  # of our exporter
                absent[name] = f"its model cannot be made: {error}"
            else:
                bits = {**variant.bits, **(gguf_bits(path) if path.suffix == ".gguf" else {})}
                command = tuple(loop_command(python, peer.driver, cpus, peer.variables))
                contenders.append(Contender(name, engine, path, command, bits))
    return contenders, absent
