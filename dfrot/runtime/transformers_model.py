"""The model that transformers loads from a folder, run in the memory of its largest block, and dfq's beside it.

transformers' own forward pass runs over a model without weights. Those of a block are loaded by transformers' rules
just before it runs, and dropped behind it; the embedding holds the rows that occur, and the head streams by rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.checkpoint import Checkpoint
from dfrot.compat.attention import set_implementation
from dfrot.compat.loading import load_parameters, meta_parameters, parameter_sources, tied_parameters
from dfrot.compat.logs import quiet_transformers
from dfrot.errors import GateError, InputError
from dfrot.inputs import DequantizedCheckpoint
from dfrot.progress import Progress, silent
from dfrot.runtime.block_runner import HEAD_ROWS, BlockRunner
from dfrot.runtime.softcap import softcap_of
from dfrot.runtime.transformers_reading import build_skeleton, key_mapping, transformers_config
from dfrot_kernels.memory import release_memory

LIMIT = 1e-3  # relative difference of one block's update, in float32; right readings measure 1e-7 to 1e-5
SMALLEST_UPDATE = 2.0**-10  # an update smaller than this share of its hidden state is judged as if it were that large
TOKENS = 32  # that are compared
TINY = 1e-30  # lower bound of norms that errors are divided by

OnBlock = Callable[[int, Tensor, Tensor], None]
"""Called behind every block: (layer, hidden state before it [1, S, hidden], hidden state behind it)."""


class StreamedHead(nn.Module):
    """A head whose rows are read when it runs."""

    def __init__(self, rows: Callable[[int, int], Tensor], count: int) -> None:
        super().__init__()
        self.rows, self.count = rows, count

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> [..., count]."""
        parts = (self.rows(begin, min(begin + HEAD_ROWS, self.count)) for begin in range(0, self.count, HEAD_ROWS))
        return torch.cat([x @ part.to(x.dtype).T for part in parts], -1)


class TransformersModel:
    """Reads no weight until it runs."""

    def __init__(self, checkpoint: Checkpoint, arch: BoundArch) -> None:
        """checkpoint: a 16-bit folder. Raises InputError where transformers refuses it."""
        self.arch, self.mapping = arch, key_mapping(checkpoint)
        self.files: dict[str, Path] = {name: entry.file for name, entry in checkpoint.on_disk.items()}
        config = transformers_config(checkpoint)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # dfq's, of a rotated folder: its online rotations are not what is compared
        if softcap_of(config, arch, "attention") is not None:
            set_implementation(config, "eager")  # PyTorch's fused attention knows no caps
        with meta_parameters():
            self.model = build_skeleton(config, arch).eval()
        self._place_on_cpu()
        self.sources, _ = parameter_sources(self.model, sorted(self.files), self.mapping)
        for target, source in tied_parameters(self.model).items():
            for missing, other in ((target, source), (source, target)):
                if missing not in self.sources and other in self.sources:
                    self.sources[missing] = self.sources[other]

    def _place_on_cpu(self) -> None:
        """Make the first parameter real where it is a vision tower's: some models move their inputs to its device."""
        name, parameter = next(self.model.named_parameters())
        module, _, leaf = name.rpartition(".")
        if self.arch.is_outside(name):
            real = nn.Parameter(torch.zeros(parameter.shape), requires_grad=False)
            setattr(self.model.get_submodule(module), leaf, real)

    def _rows(self, parameter: str, begin: int, end: int) -> Tensor:
        (name,) = self.sources[parameter]
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_slice(name)[begin:end]  # type: ignore[no-any-return]

    def _load(self, module: str) -> None:
        names = [p for p, _ in self.model.named_parameters() if p.startswith(f"{module}.")]
        stored = sorted({name for parameter in names for name in self.sources[parameter]})
        opened = {file: safe_open(file, framework="pt") for file in {self.files[name] for name in stored}}
        slices = {name: opened[self.files[name]].get_slice(name) for name in stored}  # type: ignore[no-untyped-call]
        with quiet_transformers():
            load_parameters(self.model, slices, torch.float32, self.mapping)

    def _drop(self, module: str) -> None:
        for part in self.model.get_submodule(module).modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
        release_memory()

    @torch.no_grad()
    def run(self, tokens: Tensor, on_block: OnBlock) -> Tensor:
        """Logits [1, S, vocab] of `tokens` int64 [1, S]."""
        arch, model = self.arch, self.model
        embed, head = arch.module(arch.spec.embed), arch.module(arch.spec.head.name)
        ids, inverse = torch.unique(tokens, return_inverse=True)
        rows = torch.cat([self._rows(f"{embed}.weight", int(i), int(i) + 1) for i in ids]).float()
        module = model.get_submodule(embed)
        module.weight, module.padding_idx = nn.Parameter(rows, requires_grad=False), None
        model.set_submodule(head, StreamedHead(lambda a, b: self._rows(f"{head}.weight", a, b), arch.vocab_size))
        self._load(arch.module(arch.spec.final_norm.name))
        handles = []
        for layer in range(arch.n_layers):
            name = arch.module(arch.prefix(layer))
            block = model.get_submodule(name)
            handles.append(block.register_forward_pre_hook(lambda *_, name=name: self._load(name)))

            def behind(_: nn.Module, args: Any, out: Any, name: str = name, layer: int = layer) -> None:
                self._drop(name)
                on_block(layer, args[0], out[0] if isinstance(out, tuple) else out)

            handles.append(block.register_forward_hook(behind))
        try:
            return model(input_ids=inverse, use_cache=False).logits  # type: ignore[no-any-return]
        finally:
            for handle in handles:
                handle.remove()


def computes_no_numbers(checkpoint: Path, part: str) -> InputError:
    """The error about a checkpoint one part of which computes NaN, Inf or values whose norm float32 does not hold."""
    return InputError(
        f"{checkpoint}: {part} computes NaN or Inf on ordinary text: weights or config.json are damaged, or values "
        "overflow float32; fetch the checkpoint again",
        file=checkpoint,
    )


def compare_with_transformers(
    checkpoint: Checkpoint, arch: BoundArch, tokens: Tensor, progress: Progress = silent
) -> dict[str, float]:
    """Run the model that transformers loads from the folder, and every block as dfq reads it on the same input.

    tokens: int64 [1, S]. Returns the relative error of each part. Raises GateError naming the first part that differs:
    dfq would make another model of this folder than its users run; InputError where the model computes NaN or Inf.
    Weights that are dequantized when they are read, for
    which transformers has other readers, are not compared: the result is then empty."""
    if isinstance(checkpoint, DequantizedCheckpoint):
        return {}
    tokens = tokens[:1, :TOKENS]
    ours, errors = BlockRunner(checkpoint, arch), dict[str, float]()
    last: list[Tensor] = []

    def judge(name: str, actual: Tensor, expected: Tensor, scale: Tensor) -> None:
        if not bool(scale.isfinite().all()):
            raise computes_no_numbers(checkpoint.path, name)
        errors[name] = float(((actual - expected).norm(dim=-1) / scale.clamp_min(TINY)).median())
        if not errors[name] <= LIMIT:  # NaN is a difference too
            raise GateError(
                f"{checkpoint.path}: {name}: dfq computes something else than transformers makes of this folder "
                f"({errors[name]:.2g}, relative); report it with config.json and the names of the tensors",
                file=checkpoint.path,
                limit=LIMIT,
            )

    def on_block(layer: int, before: Tensor, after: Tensor) -> None:
        progress("compare with transformers", layer, arch.n_layers)
        if layer == 0:
            judge(arch.spec.embed, ours.embed(tokens), before, before.norm(dim=-1))
        update = (after - before).norm(dim=-1) + SMALLEST_UPDATE * before.norm(dim=-1)
        judge(arch.prefix(layer), ours.run(ours.block(layer), before), after, update)
        last[:] = [after]

    logits = TransformersModel(checkpoint, arch).run(tokens, on_block)
    judge(arch.spec.head.name, ours.logits(last[0]), logits, logits.norm(dim=-1))
    return {"tokens": tokens.shape[1], "largest_error": float(f"{max(errors.values()):.1g}")}
