"""The target: a loaded causal language model, decoded step by step, and verified over whole draft trees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.cache import new_cache
from dfrot.compat.rope import angles_row_by_row
from dfrot.errors import UnsupportedError
from dfrot.generation.aux_outputs import AuxOutputs
from dfrot.generation.speculation.batch_invariance import BatchInvariance
from dfrot.generation.speculation.native_verify import NativeVerifier
from dfrot.runtime.attention_hooks import ROW_WISE, attend_row_by_row, attention_name
from dfrot.runtime.cache_rollback import keep_accepted_path
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import dense, servable

HEAD_ROWS = 16  # that a packed head multiplies in one way; more of them take another, with other bits
NO_LIMIT = 2**31 - 1  # context of a model whose config names none


class Target:
    """Wraps a transformers causal language model that is loaded, frozen and in evaluation mode.

    Features are what a draft reads of the target: the final norm's output [.., d], or with `aux_layers` the outputs of
    those layers side by side [.., f].
    """

    def __init__(self, model: Any, aux_layers: Sequence[int] = (), drafted: bool = True) -> None:
        """model: the loaded model. aux_layers: decoder layers (counted from 1, as outputs are) that a draft
        reads. drafted: False for a target that only decodes plainly, which more architectures can do.

        Raises UnsupportedError for a model that cannot be verified over a tree."""
        self.model = model
        self.decoder: nn.Module = model.get_decoder()
        self.embedding: nn.Module = model.get_input_embeddings()
        self.head_module: nn.Module = model.get_output_embeddings()
        self.config = model.config.get_text_config()
        self.aux_layers = tuple(aux_layers)
        self.drafted = drafted
        heads = int(self.config.num_attention_heads)
        self.group = heads // int(getattr(self.config, "num_key_value_heads", None) or heads)
        self.batch_invariance = BatchInvariance([self.decoder])
        self._head_invariance = BatchInvariance([self.head_module])
        if drafted and attention_name(model) not in ROW_WISE:
            raise UnsupportedError(
                f"attention implementation {attention_name(model)!r}: its rows cannot be verified one by one; "
                f"load the model with {ROW_WISE[0]!r}"
            )
        native_decoder = getattr(self.decoder, "dfq_native", None)
        self.native: Any = None if native_decoder is None or native_decoder.unfit else native_decoder
        self._verifier = None if self.native is None else NativeVerifier(self.native, self.decoder, self.group)
        self.prompt_chunk: int | None = None  # positions of a prompt that are computed at a time; None: all of them
        self.rounded_heads: dict[str, Any] = {}  # copies of the head, kept for drafts (dfrot/draft/proposal_head.py)
        if not hasattr(self.decoder, "layers"):
            raise UnsupportedError(
                f"{type(model).__name__}: its decoder has no list of layers; it cannot be drafted for"
            )
        self.windows = _windows(self.config, self.n_layers)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return list(self.decoder.layers)  # type: ignore[arg-type]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.config.vocab_size)

    @property
    def max_length(self) -> int:
        """The context: positions that the model was made for."""
        return int(getattr(self.config, "max_position_embeddings", NO_LIMIT))

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> [..., d], by the model's own module (which may scale)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    # --- the head ---------------------------------------------------------------------------------------------

    def head(self, features: Tensor) -> Tensor:
        """Features behind the final norm [..., d] -> logits [..., V]; differentiable if the head has 16 bits or more.

        Raises UnsupportedError where a gradient is wanted through a quantized head."""
        weight = getattr(self.head_module, "weight", None)
        if isinstance(weight, Tensor) and features.dtype != weight.dtype:
            features = features.to(weight.dtype)
        if torch.is_grad_enabled() and features.requires_grad and not isinstance(weight, Tensor):
            raise UnsupportedError(
                "the target's head is quantized: a draft cannot be trained through it; quantize with a 16-bit head"
            )
        return self.scale_logits(self.head_module(features))

    @torch.no_grad()
    def logits_rows(self, features: Tensor) -> Tensor:
        """`head` for the few rows of a decoding step: every row has the bits that it would have alone, and the weight
        of a dense or packed head is read once for every HEAD_ROWS of them."""
        weight = self._dense_head()
        if weight is None:
            parts = torch.split(features.reshape(1, -1, features.shape[-1]), HEAD_ROWS, dim=1)
            outputs = []
            for part in parts:
                with self._head_invariance.rows(part.shape[1]):
                    outputs.append(self.head(part))
            return torch.cat(outputs, dim=1).view(*features.shape[:-1], -1)
        if any((self.head_module._forward_hooks, self.head_module._forward_pre_hooks)):  # hooks must see the call
            rows = [self.head(row[None]) for row in features.reshape(-1, features.shape[-1])]
            return torch.cat(rows).view(*features.shape[:-1], -1)
        return self.scale_logits(dense(features.to(weight.dtype), weight))

    def _dense_head(self) -> Tensor | None:
        """The weight of a head that the native product of a few rows can read in place, or None."""
        head = self.head_module
        if type(head) is not nn.Linear or head.bias is not None or not native.active() or not servable(head.weight):
            return None
        return head.weight

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Soft cap and scale that the config asks for behind the head."""
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        return logits

    # --- decoding ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def record_aux(self) -> Iterator[AuxOutputs]:
        """Record the outputs of `aux_layers` of the forward pass inside."""
        with AuxOutputs(self.layers, self.aux_layers, self.native).recording() as aux:
            yield aux

    def start(self) -> Any:
        """An empty cache."""
        return getattr(self.decoder, "empty_cache", new_cache)()

    @torch.no_grad()
    def prefill(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Run a prompt int64 [n], `prompt_chunk` positions at a time. Returns features [n, f] and logits float32 [V] of
        the last position."""
        features = []
        for part in torch.split(ids, self.prompt_chunk or len(ids)):
            with self.record_aux() as aux:
                out = self.decoder(input_ids=part[None], past_key_values=cache, use_cache=True)
                aux_features = aux.features()
            features.append(out.last_hidden_state[0] if aux_features is None else aux_features[0])
        return torch.cat(features), self.logits_rows(out.last_hidden_state[:, -1:])[0, 0].float()

    @torch.no_grad()
    def step(self, token: int, cache: Any) -> Tensor:
        """One step of plain decoding: logits float32 [V] behind `token`."""
        ids = torch.tensor([[token]])
        out = self.decoder(input_ids=ids, past_key_values=cache, use_cache=True, **self.position_ids(ids, cache))
        return self.logits_rows(out.last_hidden_state)[0, 0].float()

    def position_ids(self, ids: Tensor, cache: Any) -> dict[str, Tensor]:
        """The argument `position_ids` for ids [1, n] behind what `cache` holds; empty where the model's own default is
        right, which it is unless images shifted the positions (dfrot/generation/multimodal.py)."""
        if not (shift := getattr(cache, "shift", 0)):
            return {}
        past = int(cache.get_seq_length())
        return {"position_ids": torch.arange(past, past + ids.shape[1])[None] + shift}

    @torch.no_grad()
    def verify(self, tokens: list[int], parents: list[int], cache: Any) -> tuple[Tensor, Tensor]:
        """Run a tree of tokens in one pass.

        Every row has the bits that `step` would compute at its position, whatever else is in the batch (see
        dfrot/generation/speculation/batch_invariance.py). The native decoder therefore serves both or neither.

        Args:
            tokens: of the nodes, the root first; parents come before their children.
            parents: of the nodes; -1 for the root.
            cache: holds everything before the root; the nodes are appended.

        Returns:
            Features [n, f] and logits float32 [n, V] of the nodes.
        """
        if not self.drafted:
            raise UnsupportedError(f"{self.config.model_type}: was opened to decode plainly; open it for drafting")
        if self._verifier is not None:
            with self.record_aux() as aux:
                native = self._verifier.tree(tokens, parents, cache, aux)
            if native is not None:
                last, aux_features = native
                logits = self.logits_rows(last[None])[0].float()
                return last if aux_features is None else aux_features, logits
        return self._verify_by_modules(tokens, parents, cache)

    def _verify_by_modules(self, tokens: list[int], parents: list[int], cache: Any) -> tuple[Tensor, Tensor]:
        """`verify` through the model's modules, its attention and batch-dependent products row by row."""
        past, count = int(cache.get_seq_length()), len(tokens)
        paths: list[list[int]] = []  # of every node: its ancestors and itself
        for node, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        # the rows' masks are made where rows are split; this one keeps the model from making its own
        mask = torch.ones(1, 1, count, past + count, dtype=torch.bool)
        positions = torch.tensor([[past + len(path) - 1 for path in paths]]) + getattr(cache, "shift", 0)
        row_by_row = attend_row_by_row(self.model, past, paths, self.windows)
        rows = self.batch_invariance.rows(count)
        with row_by_row, angles_row_by_row(self.decoder), rows, self.record_aux() as aux:
            out = self.decoder(
                input_ids=torch.tensor([tokens]),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = self.logits_rows(out.last_hidden_state)[0].float()
            aux_features = aux.features()
        return (out.last_hidden_state if aux_features is None else aux_features)[0], logits

    def keep(self, cache: Any, past: int, rows: int, path: list[int]) -> None:
        """After `verify` of `rows` nodes behind `past` positions: keep the nodes of `path` in the cache, drop the
        others."""
        if self._verifier is None or not self._verifier.keep(path, cache):
            keep_accepted_path(cache, past, rows, path)


def _windows(config: Any, n_layers: int) -> list[int | None]:
    """Of every layer the number of positions that a row sees, itself included; None: all before it."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if other := sorted(set(kinds or ()) - {"full_attention", "sliding_attention"}):
        raise UnsupportedError(
            f"{config.model_type}: layers of kind {other[0]} keep a state that cannot be rolled back"
        )
    sliding = [kind == "sliding_attention" for kind in kinds] if kinds else [True] * n_layers
    return [int(window) if window is not None and slides else None for slides in sliding]
