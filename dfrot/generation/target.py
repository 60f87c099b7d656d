"""A loaded target as the draft sees it: embeddings, features, logits, and blocks of guesses verified at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.draft.feature_selection import FeatureChooser
from dfrot.draft.training.target_features import TargetFeatures, _measure, _offer
from dfrot.errors import InputError, UnsupportedError
from dfrot.generation.batch_invariance import BatchInvariance
from dfrot.generation.native_verify import NativeVerifier
from dfrot.quant.linear import QuantLinear
from dfrot.runtime.attention_hooks import SPLIT, attend_row_by_row, attention_name, observe_attention
from dfrot.runtime.cache_rollback import keep_accepted_path, new_cache
from dfrot_kernels import native
from dfrot_kernels.draft import dense, servable


@dataclass(frozen=True)
class MultimodalPrefill:
    """A prompt with images that ran: features [n, f] for the draft and behind the final norm [n, d], logits float32 [V]
    of the last row, embeddings [n, d] with those of the images in place."""

    features: Tensor
    last: Tensor
    logits: Tensor
    embeddings: Tensor


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
        heads = int(self.config.num_attention_heads)
        self.group = heads // int(getattr(self.config, "num_key_value_heads", None) or heads)
        self.exact = BatchInvariance([self.decoder, *([] if self._dense_head() is not None else [self.head_module])])
        if drafted and attention_name(model) not in SPLIT:
            raise UnsupportedError(
                f"attention implementation {attention_name(model)!r}: its rows cannot be checked one by one; "
                f"load the model with {SPLIT[0]!r}"
            )
        native = getattr(self.decoder, "dfq_native", None)
        # hooks on layers keep the native decoder from serving: then plain steps must not use it either
        self.native: Any = native if native is not None and not native.unfit and not self.aux_layers else None
        self._by_modules = native is not None and native.unfit is None and self.native is None
        self._blocks = None if self.native is None else NativeVerifier(self.native, self.decoder, self.group)
        self.rounded_head: QuantLinear | None = None  # see dfrot/draft/proposal_head.py
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
        return self.scale_logits(self.head_module(features))

    @torch.no_grad()
    def logits_rows(self, features: Tensor) -> Tensor:
        """`head` for a few rows that are decoded: every row has the bits that it has alone, and a dense head is read
        once, at the speed of memory."""
        weight = self._dense_head()
        if weight is None:
            return self.head(features)
        if any((self.head_module._forward_hooks, self.head_module._forward_pre_hooks)):  # somebody looks on
            rows = [self.head(row[None]) for row in features.reshape(-1, features.shape[-1])]
            return torch.cat(rows).view(*features.shape[:-1], -1)
        return self.scale_logits(dense(features.to(weight.dtype), weight))

    def _dense_head(self) -> Tensor | None:
        """The weight of a head that the native product of a few rows reads in place, or None."""
        head = self.head_module
        if type(head) is not nn.Linear or head.bias is not None or not native.active() or not servable(head.weight):
            return None
        return head.weight

    def scale_logits(self, logits: Tensor) -> Tensor:
        """What the config asks for behind the head."""
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        return logits

    # --- images -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill_multimodal(
        self, ids: Tensor, given: dict[str, Any], cache: Any, sight: Any = None
    ) -> MultimodalPrefill:
        """Run a prompt int64 [n] with images, `given` being what else the processor made, through the whole model; it
        alone knows what its decoder gets: masks within an image, positions of three dimensions, features that join
        deeper blocks. `sight` looks on. Keeps in `cache` where text goes on: behind images with positions of three
        dimensions that is not the number of tokens. Raises InputError where prompt and images do not fit."""
        merged: list[Tensor] = []

        def catch(_: nn.Module, __: Any, call: dict[str, Any]) -> None:
            merged.append(call["inputs_embeds"][0])

        base = self.model.base_model
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = None  # of the prompt before
        handle = self.decoder.register_forward_pre_hook(catch, with_kwargs=True)
        watch: Any = contextlib.nullcontext() if sight is None else observe_attention(self.model, sight.observe)
        try:
            with watch, self._aux() as aux:
                out = base(input_ids=ids[None], past_key_values=cache, use_cache=True, **given)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise _unfit(error) from None
        finally:
            handle.remove()
        shift, places = getattr(base, "rope_deltas", None), given.get("position_ids")
        if places is not None:  # [3 or 4, 1, n], made beforehand; the last three are those of RoPE
            shift = places[-3:].max() + 1 - len(ids)
        cache.shift = 0 if shift is None else int(shift)
        last, joined = out.last_hidden_state[0], self._joined(aux)
        features = last if joined is None else joined[0]
        return MultimodalPrefill(features, last, self.logits_rows(last[None, -1:])[0, 0].float(), merged[0])

    def image_attention_probe(self, ids: Tensor) -> Any:
        """How much a prompt int64 [n] looks at its images (dfrot/draft/training/multimodal_source.py)."""
        from dfrot.generation.image_attention import ImageAttentionProbe

        if not hasattr(self.model.config, "vision_config"):
            raise UnsupportedError(f"{type(self.model).__name__}: takes no images; leave them out")
        full = [layer for layer, window in enumerate(self.windows) if window is None]
        return ImageAttentionProbe(ids, int(self.model.config.image_token_id), full[-1] if full else self.n_layers - 1)

    # --- training ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, ids: Tensor, chooser: FeatureChooser | None = None) -> TargetFeatures:
        """Features of ids int64 [B, S], as the deployed model computes them (quantizers and KV bits included)."""
        with self._chosen(chooser), self._aux() as aux:
            out = self.decoder(input_ids=ids, use_cache=False)
        mid, layer_of = (chooser.feature, chooser.layer) if chooser is not None else (None, None)
        return TargetFeatures(out.last_hidden_state, mid, layer_of, self._joined(aux))

    @torch.no_grad()
    def features_seen(
        self, ids: Tensor, prompt: int, given: dict[str, Any], chooser: FeatureChooser, sight: Any = None
    ) -> TargetFeatures:
        """Features of one text int64 [S] whose first `prompt` tokens hold images, in two passes as decoding has them:
        what follows is text, whatever ids it holds. chooser: of the rows behind the prompt; mid is zero before them.
        sight: looks on at the prompt."""
        cache = self.start()
        seen = self.prefill_multimodal(ids[:prompt], given, cache, sight)
        rest = ids[None, prompt:]
        with self._chosen(chooser), self._aux() as aux:
            out = self.decoder(input_ids=rest, past_key_values=cache, use_cache=True, **self._places(rest, cache))
        joined, mid = self._joined(aux), chooser.feature
        if joined is not None:
            joined = torch.cat([seen.features[None], joined], 1)
        if mid is not None:
            mid = torch.cat([mid.new_zeros(1, prompt, mid.shape[2]), mid], 1)
        embeddings = torch.cat([seen.embeddings, self.embed(rest[0])])[None]
        last = torch.cat([seen.last[None], out.last_hidden_state], 1)
        return TargetFeatures(last, mid, chooser.layer, joined, embeddings)

    @contextlib.contextmanager
    def _chosen(self, chooser: FeatureChooser | None) -> Iterator[None]:
        """Let `chooser` look at the forward inside."""
        handles = []
        if chooser is not None and chooser.selection.kind != "none":
            for number, layer in enumerate(self.layers):
                handles.append(layer.register_forward_hook(_offer(chooser, number)))
        watch: Any = contextlib.nullcontext()
        if chooser is not None and chooser.selection.kind in ("sample", "token"):
            watch = observe_attention(self.model, _measure(chooser))
        try:
            with watch:
                yield
        finally:
            for handle in handles:
                handle.remove()

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
    def prefill(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Run the prompt int64 [n]. Returns features [n, f] for the draft and logits float32 [V] of the last row."""
        with self._aux() as aux:
            out = self.decoder(input_ids=ids[None], past_key_values=cache, use_cache=True)
        joined = self._joined(aux)
        features = out.last_hidden_state[0] if joined is None else joined[0]
        return features, self.logits_rows(out.last_hidden_state[:, -1:])[0, 0].float()

    @torch.no_grad()
    def step(self, token: int, cache: Any) -> Tensor:
        """Plain decoding: one token in, logits float32 [V] out."""
        watched: Any = observe_attention(self.model, _nothing) if self._by_modules else contextlib.nullcontext()
        ids = torch.tensor([[token]])
        with watched:
            out = self.decoder(input_ids=ids, past_key_values=cache, use_cache=True, **self._places(ids, cache))
        return self.logits_rows(out.last_hidden_state)[0, 0].float()

    def _places(self, ids: Tensor, cache: Any) -> dict[str, Tensor]:
        """Positions of the ids [1, n] behind what `cache` holds, where they are not what the model would take."""
        if not (shift := getattr(cache, "shift", 0)):  # see `see`
            return {}
        past = int(cache.get_seq_length())
        return {"position_ids": torch.arange(past, past + ids.shape[1])[None] + shift}

    @torch.no_grad()
    def verify(self, tokens: list[int], parents: list[int], cache: Any) -> tuple[Tensor, Tensor]:
        """Run a tree of tokens in one pass; node 0 is the root, parents come before children, -1 is no parent.

        Every row computes what `step` would compute at its place, to the last bit, whatever else is in the block
        (see dfrot/generation/batch_invariance.py): the native decoder serves both or neither.

        Returns features [n, f] and logits float32 [n, V]."""
        if not self.drafted:
            raise UnsupportedError(f"{self.config.model_type}: was opened to decode plainly; open it for drafting")
        past, count = int(cache.get_seq_length()), len(tokens)
        if self._blocks is not None and (found := self._blocks.tree(tokens, parents, cache)) is not None:
            return found, self.logits_rows(found[None])[0].float()
        paths: list[list[int]] = []  # of every node: its ancestors and itself
        for node, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        # the rows' masks are made where they are split; this one keeps the model from making others
        mask = torch.ones(1, 1, count, past + count, dtype=torch.bool)
        positions = torch.tensor([[past + len(path) - 1 for path in paths]]) + getattr(cache, "shift", 0)
        with attend_row_by_row(self.model, past, paths, self.windows), self.exact.rows(count), self._aux() as aux:
            out = self.decoder(
                input_ids=torch.tensor([tokens]),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = self.logits_rows(out.last_hidden_state)[0].float()
        joined = self._joined(aux)
        return (out.last_hidden_state if joined is None else joined)[0], logits

    def keep(self, cache: Any, past: int, rows: int, path: list[int]) -> None:
        """After `verify` of `rows` nodes: of them keep those on the accepted path."""
        if self._blocks is None or not self._blocks.keep(path, cache):
            keep_accepted_path(cache, past, rows, path)


def _windows(config: Any, n_layers: int) -> list[int | None]:
    """The sliding window of every layer: how many positions a row sees, itself included; None: all before it."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if odd := sorted(set(kinds or ()) - {"full_attention", "sliding_attention"}):
        raise UnsupportedError(f"{config.model_type}: layers of kind {odd[0]} keep a state that cannot be rolled back")
    sliding = [kind == "sliding_attention" for kind in kinds] if kinds else [True] * n_layers
    return [int(window) if window is not None and slides else None for slides in sliding]


def _nothing(*_: Any) -> None:
    """Looking on without interest: the modules serve, op by op."""


def _unfit(error: Exception) -> InputError:
    first = (str(error).splitlines() or [""])[0]
    return InputError(f"images and prompt do not fit each other ({first}); give what the processor made")
