"""A loaded target as the draft sees it: embeddings, features, logits, and blocks of guesses verified at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import ARCHS
from dfrot.draft.exact import RowExact
from dfrot.draft.native_blocks import NativeBlocks
from dfrot.draft.select import Chooser, row_entropy
from dfrot.errors import InputError, UnsupportedError
from dfrot.hf.interpose import observing, row_by_row
from dfrot.hf.rollback import keep_path, new_cache
from dfrot.quant.linear import QuantLinear
from dfrot_kernels import native
from dfrot_kernels.draft import dense, servable


@dataclass
class Features:
    """last [B, S, d] behind the final norm; mid [B, S, d] and its layer int64 [B, 1 or S], or None; aux [B, S, 3 d]
    or None: outputs of three decoder layers side by side. With images: embeddings [B, S, d], text and images merged,
    and kept int64 [B, n], the positions that become slots of the draft."""

    last: Tensor
    mid: Tensor | None = None
    layer: Tensor | None = None
    aux: Tensor | None = None
    embeddings: Tensor | None = None
    kept: Tensor | None = None


class Target:
    """Wraps a transformers causal language model that is loaded, frozen and in evaluation mode.

    aux_layers: decoder layers (from 1, as outputs are counted) that an eagle3 draft reads. drafted: False for a target
    that decodes plainly, which more architectures can do."""

    def __init__(self, model: Any, aux_layers: Sequence[int] = (), drafted: bool = True) -> None:
        self.model = model
        self.decoder: nn.Module = model.get_decoder()
        self.embedding: nn.Module = model.get_input_embeddings()
        self.head_module: nn.Module = model.get_output_embeddings()
        self.config = model.config.get_text_config()
        self.aux_layers = tuple(aux_layers)
        self.drafted = drafted
        if drafted and (kind := ARCHS.get(self.config.model_type)) is not None and kind.experts is not None:
            raise UnsupportedError(
                f"{self.config.model_type}: is a mixture of experts, whose routers are not verified row by row; "
                "drafting does not serve it, generate plainly"
            )
        self.window: int | None = _window(self.config, drafted)
        heads = int(self.config.num_attention_heads)
        self.group = heads // int(getattr(self.config, "num_key_value_heads", None) or heads)
        self.exact = RowExact([self.decoder, *([] if self._dense_head() is not None else [self.head_module])])
        native = getattr(self.decoder, "dfq_native", None)
        # hooks on layers keep the native decoder from serving: then plain steps must not use it either
        self.native: Any = native if native is not None and not native.unfit and not self.aux_layers else None
        self._by_modules = native is not None and self.native is None
        self._blocks = None if self.native is None else NativeBlocks(self.native, self.decoder, self.group)
        self.rounded_head: QuantLinear | None = None  # see dfrot/draft/head.py
        if not hasattr(self.decoder, "layers"):
            raise UnsupportedError(
                f"{type(model).__name__}: its decoder has no list of layers; it cannot be drafted for"
            )

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return list(self.decoder.layers)  # type: ignore[arg-type]

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def max_length(self) -> int:
        """Positions that the target was made for."""
        return int(getattr(self.config, "max_position_embeddings", 2**31 - 1))

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> [..., d], by the target's own module (which may scale)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def head(self, features: Tensor) -> Tensor:
        """Post-norm features [..., d] -> logits [..., V], differentiable if the head is in 16 bits or wider."""
        weight = getattr(self.head_module, "weight", None)
        if isinstance(weight, Tensor) and features.dtype != weight.dtype:
            features = features.to(weight.dtype)
        if torch.is_grad_enabled() and features.requires_grad and not isinstance(weight, Tensor):
            raise UnsupportedError("the target's head is quantized: a draft cannot be trained through it; keep lm_head")
        return self.scaled(self.head_module(features))

    @torch.no_grad()
    def say(self, features: Tensor) -> Tensor:
        """`head` for a few rows that are decoded: every row has the bits that it has alone, and a dense head is read
        once, at the speed of memory."""
        weight = self._dense_head()
        if weight is None:
            return self.head(features)
        if any((self.head_module._forward_hooks, self.head_module._forward_pre_hooks)):  # somebody looks on
            rows = [self.head(row[None]) for row in features.reshape(-1, features.shape[-1])]
            return torch.cat(rows).view(*features.shape[:-1], -1)
        return self.scaled(dense(features.to(weight.dtype), weight))

    def _dense_head(self) -> Tensor | None:
        """The weight of a head that the native product of a few rows reads in place, or None."""
        head = self.head_module
        if type(head) is not nn.Linear or head.bias is not None or not native.active() or not servable(head.weight):
            return None
        return head.weight

    def scaled(self, logits: Tensor) -> Tensor:
        """What the config asks for behind the head."""
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        return logits

    # --- images -----------------------------------------------------------------------------------------------

    def undraftable(self, given: dict[str, Any]) -> str | None:
        """What only the whole model knows of a prompt with images, so that its decoder alone cannot run it; or None."""
        if "mrope_section" in (getattr(self.config, "rope_parameters", None) or {}):
            return "positions of three dimensions"
        return "images that see in both directions" if "token_type_ids" in given else None

    @torch.no_grad()
    def see(self, ids: Tensor, given: dict[str, Any], cache: Any) -> Tensor:
        """Run a prompt int64 [n] with images through the whole model, and keep in `cache` where text goes on: behind
        images with positions of three dimensions that is not the number of tokens. Returns logits float32 [V] of the
        last row. Raises InputError where prompt and images do not fit."""
        try:
            out = self.model(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1, **given)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise _unfit(error) from None
        shift = getattr(self.model.base_model, "rope_deltas", None)
        cache.shift = 0 if shift is None else int(shift)
        return out.logits[0, -1].float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def merge(self, ids: Tensor, given: dict[str, Any]) -> Tensor:
        """Embeddings [n, d] of a prompt int64 [n] whose image tokens are replaced by what the vision tower says of
        `given`, the processor's other tensors. Raises InputError when they do not fit each other."""
        if not hasattr(self.model.config, "vision_config"):
            raise UnsupportedError(f"{type(self.model).__name__}: takes no images; leave them out")
        if reason := self.undraftable(given):
            raise UnsupportedError(f"{self.config.model_type}: {reason} cannot be drafted for yet; leave the draft out")
        caught: list[Tensor] = []

        def catch(_: nn.Module, __: Any, call: dict[str, Any]) -> None:
            caught.append(call["inputs_embeds"][0])
            raise _Caught

        handle = self.decoder.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model.base_model(input_ids=ids[None], use_cache=False, **given)
        except _Caught:
            return caught[0]
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise _unfit(error) from None
        finally:
            handle.remove()
        raise UnsupportedError(f"{type(self.model).__name__}: hands no embeddings to its decoder")

    def sight(self, ids: Tensor) -> Any:
        """An observer of how much a prompt int64 [n] looks at its images (dfrot/draft/visual.py)."""
        from dfrot.draft.visual import Sight

        return Sight(ids, int(self.model.config.image_token_id), self.n_layers - 1)

    # --- training ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(
        self, ids: Tensor, chooser: Chooser | None = None, embeddings: Tensor | None = None, sight: Any = None
    ) -> Features:
        """Features of ids int64 [B, S], as the deployed model computes them (quantizers and KV bits included).

        embeddings [S, d]: of `merge`, for one row with images; sight: looks on too."""
        handles = []
        if chooser is not None and chooser.selection.kind != "none":
            for number, layer in enumerate(self.layers):
                handles.append(layer.register_forward_hook(_offer(chooser, number)))
        watch: Any = contextlib.nullcontext()
        if chooser is not None and (sight is not None or chooser.selection.kind in ("sample", "token")):
            watch = observing(self.model, _measure(chooser, sight))
        call = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings[None]}
        try:
            with watch, self._aux() as aux:
                out = self.decoder(**call, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        mid, layer_of = (chooser.feature, chooser.layer) if chooser is not None else (None, None)
        return Features(out.last_hidden_state, mid, layer_of, self._joined(aux))

    @contextlib.contextmanager
    def _aux(self) -> Iterator[dict[int, Tensor]]:
        """Outputs of the aux layers of the forward inside."""
        found: dict[int, Tensor] = {}
        handles = []
        for number in self.aux_layers:

            def keep(_: nn.Module, __: Any, output: Any, number: int = number) -> None:
                found[number] = output[0] if isinstance(output, tuple) else output

            handles.append(self.layers[number - 1].register_forward_hook(keep))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _joined(self, aux: dict[int, Tensor]) -> Tensor | None:
        return torch.cat([aux[number] for number in self.aux_layers], -1) if self.aux_layers else None

    # --- decoding ---------------------------------------------------------------------------------------------

    def start(self) -> Any:
        """An empty cache."""
        return new_cache()

    @torch.no_grad()
    def prefill(
        self, ids: Tensor, cache: Any, embeddings: Tensor | None = None, sight: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Run the prompt int64 [n], or with images its `embeddings` [n, d] with `sight` looking on. Returns features
        [n, f] for the draft and logits float32 [V] of the last row."""
        watch: Any = contextlib.nullcontext() if sight is None else observing(self.model, sight.observe)
        call = {"input_ids": ids[None]} if embeddings is None else {"inputs_embeds": embeddings[None]}
        with watch, self._aux() as aux:
            out = self.decoder(**call, past_key_values=cache, use_cache=True)
        joined = self._joined(aux)
        features = out.last_hidden_state[0] if joined is None else joined[0]
        return features, self.say(out.last_hidden_state[:, -1:])[0, 0].float()

    @torch.no_grad()
    def step(self, token: int, cache: Any) -> Tensor:
        """Plain decoding: one token in, logits float32 [V] out."""
        watched: Any = observing(self.model, _nothing) if self._by_modules else contextlib.nullcontext()
        call: dict[str, Any] = {}
        if shift := getattr(cache, "shift", 0):  # see `see`
            call["position_ids"] = torch.full((3, 1, 1), cache.get_seq_length() + shift)
        with watched:
            out = self.decoder(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True, **call)
        return self.say(out.last_hidden_state)[0, 0].float()

    @torch.no_grad()
    def verify(self, tokens: list[int], parents: list[int], cache: Any) -> tuple[Tensor, Tensor]:
        """Run a tree of tokens in one pass; node 0 is the root, parents come before children, -1 is no parent.

        Every row computes what `step` would compute at its place, to the last bit, whatever else is in the block
        (see dfrot/draft/exact.py): the native decoder serves both or neither.

        Returns features [n, f] and logits float32 [n, V]."""
        if not self.drafted:
            raise UnsupportedError(f"{self.config.model_type}: was opened to decode plainly; open it for drafting")
        past, count = int(cache.get_seq_length()), len(tokens)
        if self._blocks is not None and (found := self._blocks.tree(tokens, parents, cache)) is not None:
            return found, self.say(found[None])[0].float()
        paths: list[list[int]] = []  # of every node: its ancestors and itself
        for node, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        mask = torch.zeros(1, 1, count, past + count, dtype=torch.bool)
        mask[..., :past] = True
        for node, path in enumerate(paths):
            mask[0, 0, node, [past + n for n in path]] = True
        positions = torch.tensor([[past + len(path) - 1 for path in paths]])
        if self.window is not None:
            keys = torch.cat([torch.arange(past), positions[0]])
            mask &= positions[0, :, None] - keys < self.window
        with row_by_row(self.model, past, paths, self.window), self.exact.rows(count), self._aux() as aux:
            out = self.decoder(
                input_ids=torch.tensor([tokens]),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = self.say(out.last_hidden_state)[0].float()
        joined = self._joined(aux)
        return (out.last_hidden_state if joined is None else joined)[0], logits

    def keep(self, cache: Any, past: int, rows: int, path: list[int]) -> None:
        """After `verify` of `rows` nodes: of them keep those on the accepted path."""
        if self._blocks is None or not self._blocks.keep(path, cache):
            keep_path(cache, past, rows, path)


def _window(config: Any, drafted: bool) -> int | None:
    """The sliding window that all layers share, None without one. Plain decoding leaves windows to the model."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if kinds - {"full_attention", "sliding_attention"}:
        odd = sorted(kinds - {"full_attention", "sliding_attention"})
        raise UnsupportedError(f"{config.model_type}: layers of kind {odd[0]} keep a state that cannot be rolled back")
    if len(kinds) > 1 and not drafted:
        return None
    if len(kinds) > 1:
        raise UnsupportedError(
            f"{config.model_type}: mixes full and sliding attention, which drafting does not serve yet"
        )
    if window is None or kinds == {"full_attention"}:
        return None
    return int(window)


def _nothing(*_: Any) -> None:
    """Looking on without interest: the modules serve, op by op."""


def _unfit(error: Exception) -> InputError:
    first = (str(error).splitlines() or [""])[0]
    return InputError(f"images and prompt do not fit each other ({first}); give what the processor made")


class _Caught(Exception):
    """The embeddings are known, the rest of the pass is not needed."""


def _measure(chooser: Chooser, sight: Any = None) -> Any:
    def observe(layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool) -> None:
        if sight is not None:
            sight.observe(layer, query, key, mask, scale, causal)
        if chooser.wants_entropy(layer):
            chooser.measured(*row_entropy(query, key, mask, scale, causal))

    return observe


def _offer(chooser: Chooser, layer: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        chooser.offer(layer, output[0] if isinstance(output, tuple) else output)

    return hook
