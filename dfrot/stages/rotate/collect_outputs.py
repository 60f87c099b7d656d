"""Norm outputs of some windows, with the linears that read them: what R1 is refined on for outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfrot.arch.spec import Norm
from dfrot.calib.taps import inner_linear
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks, in_order
from dfrot.rotation.refinement.calibration_rows import normalise
from dfrot.rotation.refinement.output_error import NormOutputs, reader_factor
from dfrot.runtime.block_runner import BlockRunner

ROW_BYTES = 1 << 30  # budget for the kept rows, bfloat16


@torch.no_grad()
def collect_outputs(
    runner: BlockRunner, windows: Tensor, seed: int, progress: Progress = silent, ranks: Ranks = SINGLE
) -> list[NormOutputs]:
    """Run `windows` int64 [samples, seqlen] through the model, one block in memory, and keep an equal share of the
    outputs of every norm that feeds linears, in the order of computation; of a norm, window after window.

    ranks: processes that share the windows, and the norms' readers; all of them get everything."""
    arch = runner.arch
    norms = arch.spec.rotated_norms
    rows = max(1, ROW_BYTES // (2 * arch.hidden * len(norms) * arch.n_layers * len(windows)))
    hidden = {number: runner.embed(windows[number : number + 1]) for number in ranks.own(range(len(windows)))}
    taps: list[NormOutputs] = []
    for layer in range(arch.n_layers):
        progress("outputs", layer, arch.n_layers)
        own_norms = [number for number in range(len(norms)) if (len(taps) + number) % ranks.size == ranks.rank]
        block = runner.block(layer) if hidden or own_norms else None
        kept: dict[str, list[Tensor]] = {norm.name: [] for norm in norms}
        for number, states in hidden.items():
            assert block is not None
            draw = np.random.Generator(np.random.PCG64([seed, layer, number]))
            hooks = [
                block.get_submodule(name).register_forward_pre_hook(_keep(inputs, rows, arch.norm_eps, draw))
                for name, inputs in kept.items()
            ]
            hidden[number] = runner.run(block, states)
            for hook in hooks:
                hook.remove()
        readers = {}
        for number in own_norms:
            assert block is not None
            readers[number] = _readers(block, norms[number], seed + len(taps) + number)
        block, hooks = None, []  # before the next one is built: one block in memory
        parts = ranks.gather_everywhere({"rows": kept, "readers": readers})
        for number, norm in enumerate(norms):
            of_windows = in_order([part["rows"][norm.name] for part in parts])
            factor = parts[len(taps) % ranks.size]["readers"][number]
            taps.append(NormOutputs(torch.cat(of_windows), factor if ranks.size == 1 else factor.clone()))
        del parts, kept, of_windows
    progress("outputs", arch.n_layers, arch.n_layers)
    return taps


def _keep(inputs: list[Tensor], rows: int, eps: float, draw: np.random.Generator) -> Callable[[Any, tuple[Any]], None]:
    """A forward pre-hook that keeps at most `rows` of the outputs of an RMSNorm without its gain, in order."""

    def hook(module: Any, args: tuple[Any]) -> None:
        states = args[0].flatten(0, -2)
        chosen = np.sort(draw.permutation(len(states))[:rows])
        inputs.append(normalise(states[torch.from_numpy(chosen)], eps).bfloat16())

    return hook


def _readers(block: nn.Module, norm: Norm, seed: int) -> Tensor:
    """As `NormOutputs.readers`."""
    stored: Any = block.get_submodule(norm.name).weight
    gain = stored + norm.offset
    return reader_factor([inner_linear(block, name).weight for name in norm.feeds], gain, seed)
