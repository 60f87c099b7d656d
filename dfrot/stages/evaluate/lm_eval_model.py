"""A checkpoint as an lm-eval model: log-likelihoods in batches, rolling log-likelihoods, and generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from torch import Tensor

from dfrot.data.fast_tokenizer import FastTokenizer
from dfrot.data.tokenizer import load_tokenizer, require_known_ids
from dfrot.errors import UnsupportedError
from dfrot.generation.engine import Engine, TextRequest
from dfrot.generation.sampling import Sampling
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks

_GENERATION = {"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks", "repetition_penalty"}
Request = tuple[Any, list[int], list[int]]
"""(cache key, context, continuation), the last two as token ids."""


class DfqLM(TemplateLM):  # type: ignore[misc]
    """An lm-eval model over an `Engine`.

    Rows are padded at the right, where causal attention and per-token quantizers do not notice it: a row of a batch
    gets the score that it gets alone. Ranks share the requests; lm-eval sees a single process on each."""

    def __init__(
        self, engine: Engine, batch: int = 8, seed: int = 0, progress: Progress = silent, ranks: Ranks = SINGLE
    ) -> None:
        """engine: the loaded checkpoint; batch: rows per forward pass; seed: of sampled texts; ranks: all of which get
        the same requests."""
        super().__init__()
        self.ranks = ranks
        self.engine, self.batch, self.seed, self.progress = engine, batch, seed, progress
        read_fast = isinstance(engine.tokenizer, FastTokenizer)  # lm-eval asks for more than it has
        self.tokenizer: Any = load_tokenizer(engine.folder) if read_fast else engine.tokenizer
        self.max_length = engine.context
        self.cut = 0  # continuations that did not fit the context
        self.newline_prefix = False  # whether a newline stood for BOS

    @property
    def notes(self) -> list[str]:
        """What the scores do not show: how requests were changed to fit the model."""
        notes = []
        if self.cut:
            notes.append(
                f"{self.cut} continuations are longer than the context of {self.max_length} tokens: their last "
                f"{self.max_length} tokens were scored"
            )
        if self.newline_prefix:
            notes.append("the tokenizer has neither BOS nor EOS: a newline stood in front of texts without context")
        return notes

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's EOS, else the one that ends the model's texts; None where neither is known."""
        eos = self.tokenizer.eos_token_id
        return min(self.engine.end_tokens, default=None) if eos is None else int(eos)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text without context: BOS, or EOS where there is none, or a newline without
        either."""
        bos = self.tokenizer.bos_token_id
        token = self.eot_token_id if bos is None else int(bos)
        if token is None:
            self.newline_prefix = True
            token = self.tok_encode("\n", add_special_tokens=False)[-1]
        return token

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's cache keys."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; None adds special tokens unless the text begins with BOS already."""
        bos = self.tokenizer.bos_token
        if add_special_tokens is None:
            add_special_tokens = not (bos and string.startswith(bos))
        ids = list(self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
        require_known_ids(torch.tensor(ids), self.engine.target.vocab_size)
        return ids

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """The text of a conversation in the model's chat template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """(sum of log-probabilities of the continuation, whether greedy decoding produces it) per request, in order."""
        order = sorted(range(len(requests)), key=lambda n: -len(requests[n][1]) - len(requests[n][2]))
        self.cut += sum(len(continuation) > self.max_length for _, _, continuation in requests)
        batches = [order[begin : begin + self.batch] for begin in range(0, len(order), self.batch)]
        own: list[list[list[Any]]] = []  # lists travel, tuples do not
        for turn, chosen in enumerate(self.ranks.own(batches)):
            self.progress("score", turn * self.ranks.size * self.batch, len(order))
            own.append([list(score) for score in self._score_batch([requests[number] for number in chosen])])
        self.progress("score", len(order), len(order))
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for chosen, results in zip(batches, self.ranks.everyones(own)):
            for number, (value, greedy) in zip(chosen, results):
                scores[number] = (value, greedy)
        for (key, _, _), score in zip(requests, scores):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, score)
        return scores

    def _score_batch(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """As `_loglikelihood_tokens`, in one forward pass. Of a continuation longer than the context the end is
        scored."""
        model = self.engine.target.model
        rows = [(context + continuation)[-(self.max_length + 1) :][:-1] for _, context, continuation in requests]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        scores = []
        for (_, _, continuation), row, states in zip(requests, rows, hidden):
            continuation = continuation[-len(row) :]
            logits = self._head(states[len(row) - len(continuation) : len(row)])
            target = torch.tensor(continuation)
            log_probabilities = logits.log_softmax(-1).gather(-1, target[:, None])
            scores.append((float(log_probabilities.double().sum()), bool((logits.argmax(-1) == target).all())))
        return scores

    def _head(self, states: Tensor) -> Tensor:
        """Logits float32 [n, vocab] of hidden states [n, d]."""
        return self.engine.target.head(states[None])[0].float()

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts in windows of the context, each token scored once."""
        windows: list[Request] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows)):
            totals[owner] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop string (cut off), one by one, with the draft if the engine has one."""
        own: list[str] = []
        for turn, request in enumerate(self.ranks.own(requests)):
            self.progress("generate", turn * self.ranks.size, len(requests))
            context, options = request.args
            own.append(self._generate(context, dict(normalize_gen_kwargs(options))))
        self.progress("generate", len(requests), len(requests))
        texts = self.ranks.everyones(own)
        for request, text in zip(requests, texts):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        """One text. Raises UnsupportedError for generation options or lengths that are not supported."""
        if unknown := sorted(set(options) - _GENERATION):
            raise UnsupportedError(f"task asks for {unknown[0]} in its generation_kwargs: not supported; take it out")
        penalty = float(options.get("repetition_penalty", 1.0))
        sampling = Sampling(repetition_penalty=penalty)
        if options.get("do_sample"):
            options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **options}
            filters = float(options["temperature"]), float(options["top_p"]), int(options["top_k"])
            sampling = Sampling(*filters, repetition_penalty=penalty)
        count = int(options["max_gen_toks"])
        if count >= self.max_length:
            raise UnsupportedError(f"task generates {count} tokens: the context holds {self.max_length}")
        end = self.eot_token_id
        eos = None if end is None else self.tokenizer.decode([end], skip_special_tokens=False)
        stops = tuple(handle_stop_sequences(options.get("until"), eos=eos))
        prompt = tuple(self.tok_encode(context)[-(self.max_length - count) :])
        return "".join(self.engine.start(TextRequest(prompt, count, stops, sampling, self.seed)))
