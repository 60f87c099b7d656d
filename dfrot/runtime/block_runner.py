"""Running a checkpoint block by block: transformers' own modules, one block's weights in memory at a time."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.arch.space import Space
from dfrot.checkpoint import Checkpoint
from dfrot.compat.attention import set_implementation
from dfrot.compat.masks import causal_mask
from dfrot.errors import InputError, UnsupportedError
from dfrot.quant import resets
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.rotated_linear import hadamard
from dfrot.rotation.online import HadamardSpec
from dfrot.runtime.experts import install_experts
from dfrot.runtime.softcap import softcap_of
from dfrot_kernels.memory import release_memory  # (its package registers torch.ops.dfq)

HEAD_ROWS = 8192  # rows of the head that are in memory at a time


class OnlineHadamard(nn.Module):
    """A linear whose input is rotated first: the online half of R4.

    Attributes: `overwrites`, False; True rotates in place, so that the input is in memory once."""

    base: Tensor

    def __init__(self, spec: HadamardSpec, linear: nn.Module) -> None:
        super().__init__()
        self.overwrites = False
        self.spec = spec
        self.linear = linear
        self.register_buffer("base", spec.base(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> what the linear makes of x H, [..., N]."""
        if x.requires_grad:
            return self.linear(hadamard(x, self.base, self.spec.block))  # type: ignore[no-any-return]
        rotated = torch.ops.dfq.hadamard(x, self.base, self.spec.block)
        if self.overwrites:
            rotated = x.copy_(rotated)
        return self.linear(rotated)  # type: ignore[no-any-return]


def hf_config(config: dict[str, Any], dtype: torch.dtype) -> Any:
    """A transformers config object from a plain `config.json` dictionary, without its quantization entry.

    Raises UnsupportedError for a model type that transformers lacks, InputError when it refuses a value."""
    from transformers import CONFIG_MAPPING, AutoConfig

    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    model_type = plain.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedError(f"model_type {model_type!r}: the installed transformers does not know it; update it")
    try:
        built = AutoConfig.for_model(model_type, **plain)
    except Exception as error:  # transformers raises many kinds here; all mean that config.json is wrong
        raise InputError(f"config.json: refused by transformers ({' '.join(str(error).split())})") from None
    built.dtype = dtype
    return built


class BlockRunner:
    """Runs a 16-bit checkpoint (original or rotated) on token batches in `dtype`.

    hidden states are [B, S, hidden]. Works for rotated checkpoints: R4 is attached where the config asks for it,
    R3 is not needed as long as nothing is quantized between RoPE and the scores.
    """

    def __init__(self, checkpoint: Checkpoint, arch: BoundArch, dtype: torch.dtype = torch.float32) -> None:
        """Reads no weight. Raises UnsupportedError for a quantized checkpoint."""
        from transformers import AutoModelForCausalLM

        self.checkpoint, self.arch, self.dtype = checkpoint, arch, dtype
        dfq = DfqConfig.of(checkpoint.config, str(checkpoint.path / "config.json"))
        if dfq is not None and dfq.scheme is not None:
            raise UnsupportedError(
                f"{checkpoint.path}: is quantized already; give the 16-bit checkpoint", file=checkpoint.path
            )
        self.online = dfq.online if dfq else None
        self.resets = dfq.resets if dfq else ()
        config = hf_config(arch.config, dtype)
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and not config.sliding_window:
            raise InputError("config.json: layers of sliding attention need a sliding_window", field="sliding_window")
        if softcap_of(config, arch, "attention") is not None:
            set_implementation(config, "eager")  # PyTorch's fused attention knows no caps
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.config = self.skeleton.config  # with the attention that transformers chose
        install_experts(self.skeleton, arch, dtype)
        # rotary tables are computed, not stored: build that one module for real
        rotary = self._module("model.rotary_emb")
        self.rotary = type(rotary)(config=self.config)
        self.rotary_takes_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters

    def _module(self, name: str) -> nn.Module:
        return self.skeleton.get_submodule(name)  # type: ignore[no-any-return]

    def _materialise(self, module: nn.Module, prefix: str) -> nn.Module:
        """A copy of a meta module with the checkpoint's weights."""
        module = copy.deepcopy(module)
        state = {}
        for name, _ in module.named_parameters():
            state[name] = self.checkpoint.read(self.arch.stored(f"{prefix}.{name}")).to(self.dtype)
        module.load_state_dict(state, strict=False, assign=True)
        for name, _ in list(module.named_buffers()):
            raise UnsupportedError(f"{prefix}.{name}: a block with stored buffers cannot be run block by block")
        return module.requires_grad_(False).eval()

    def block(self, layer: int) -> nn.Module:
        """Block `layer` with weights, online R4 attached. Drop the previous one first: one block in memory."""
        release_memory()
        module = self._materialise(self._module(self.arch.prefix(layer)), self.arch.prefix(layer))
        if segment := self.arch.spec.experts and self.arch.spec.experts.memory:
            module.add_module(segment[0], module.get_submodule(segment[1]))  # known by its stored name too
        if self.online and self.online.r4:
            for linear in self.arch.spec.linears:
                if linear.reads == Space.MLP:
                    rotated = OnlineHadamard(self.online.r4, module.get_submodule(linear.name))
                    module.set_submodule(linear.name, rotated)
        resets.attach(module, self.resets, self.arch.prefix(layer))
        return module

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, S] -> hidden [B, S, hidden]; reads only the rows that occur."""
        ids, inverse = torch.unique(tokens, return_inverse=True)
        vocab = self.arch.vocab_size
        if int(ids.max()) >= vocab:
            raise InputError(
                f"token id {int(ids.max())} is outside the vocabulary ({vocab}); wrong tokenizer?", limit=vocab
            )
        name = f"{self.arch.spec.embed}.weight"
        rows = torch.cat([self.checkpoint.read_rows(name, int(i), int(i) + 1) for i in ids])
        hidden = rows.to(self.dtype)[inverse]
        scale = self.arch.scalar("embed")
        return hidden if scale == 1 else hidden * scale

    @torch.no_grad()
    def run(self, block: nn.Module, hidden: Tensor, cache: Any = None) -> Tensor:
        """One block on hidden [B, S, hidden], causal attention from position 0.

        cache: an object whose `update(keys, values, layer)` returns what attention reads instead."""
        return self.differentiable(block, hidden, cache)

    def differentiable(self, block: nn.Module, hidden: Tensor, cache: Any = None) -> Tensor:
        """`run`, through which gradients pass where they are enabled."""
        positions = torch.arange(hidden.shape[1]).unsqueeze(0)
        mask = self._mask(block, hidden, positions)
        out = block(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self._rope_angles(block, hidden, positions),
            past_key_values=cache,
            use_cache=False,
        )
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    def _layer_type(self, block: nn.Module) -> str | None:
        """The block's type of attention, where an architecture has several."""
        types = getattr(self.config, "layer_types", None)
        layer = next((m.layer_idx for m in block.modules() if isinstance(getattr(m, "layer_idx", None), int)), 0)
        return str(types[layer]) if types else None

    def _rope_angles(self, block: nn.Module, hidden: Tensor, positions: Tensor) -> Any:
        """cos and sin of RoPE, which may depend on the type of attention."""
        return self.rotary(hidden, positions, *((self._layer_type(block),) if self.rotary_takes_layer_type else ()))

    def _mask(self, block: nn.Module, hidden: Tensor, positions: Tensor) -> Any:
        """The causal mask of this block, within a sliding window where the block has one."""
        layer_type = self._layer_type(block)
        window = getattr(self.config, "sliding_window", None)
        sliding = layer_type == "sliding_attention" if layer_type is not None else window is not None
        return causal_mask(self.config, hidden, positions, sliding)

    def final_norm(self) -> nn.Module:
        """The norm behind the last block."""
        name = self.arch.spec.final_norm.name
        return self._materialise(self._module(name), name)

    @torch.no_grad()
    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm, gain included, on hidden [..., hidden]."""
        return self.final_norm()(hidden)  # type: ignore[no-any-return]

    def head_rows(self, rows: int = HEAD_ROWS) -> Iterator[Tensor]:
        """The head's weight in blocks of rows [n, hidden], in stored dtype."""
        spec = self.arch.spec
        name = f"{spec.embed if self.arch.tied else spec.head.name}.weight"
        for begin in range(0, self.arch.vocab_size, rows):
            yield self.checkpoint.read_rows(name, begin, begin + rows)

    @torch.no_grad()
    def logits(self, hidden: Tensor, rows: int = HEAD_ROWS, capped: bool = True) -> Tensor:
        """Final norm and head on hidden [..., hidden] -> logits [..., vocab]; the head streams by rows. capped: False
        leaves out the cap that some architectures put on them."""
        normed = self.normed(hidden)
        out = torch.cat([normed @ part.to(self.dtype).T for part in self.head_rows(rows)], dim=-1)
        bias = f"{self.arch.spec.head.name}.bias"
        out = out + self.checkpoint.read(bias).to(self.dtype) if bias in self.checkpoint else out
        divisor = self.arch.scalar("logits")
        out = out if divisor == 1 else out / divisor
        cap = softcap_of(self.config, self.arch, "logits") if capped else None
        return out if cap is None else torch.tanh(out / cap) * cap
