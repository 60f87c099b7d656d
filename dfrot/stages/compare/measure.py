"""Measuring the checkpoints of a comparison on its texts, each beside the unquantized model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dfrot.bench.process_meters import StageMeter
from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.intervals import as_list, ratio_interval
from dfrot.evaluate.tokens import WindowReader
from dfrot.progress import Progress
from dfrot.runtime.load import load_model
from dfrot.stages.compare.settings import CompareSettings
from dfrot.stages.evaluate.inputs import open_checkpoints
from dfrot.stages.evaluate.perplexity import measure_model, protocol_of
from dfrot.stages.evaluate.settings import PerplexitySettings


class TextMeter:
    """Perplexity, divergence from the unquantized model and speed of checkpoints, on every text."""

    def __init__(self, model: Path, settings: CompareSettings, progress: Progress) -> None:
        """model: the unquantized checkpoint. Raises InputError for a text that cannot be read."""
        self.model, self.settings, self.progress = model, settings, progress
        tokenizer = load_tokenizer(model)
        self.texts = [load_text(name, "test", tokenizer) for name in settings.texts]
        self.readers = [WindowReader(text, settings.seqlen, settings.windows) for text in self.texts]
        self.baselines: list[Baseline | None] = [None] * len(self.texts)
        self.losses: list[torch.Tensor] = []

    def baseline(self) -> dict[str, Any]:
        """What is measured on the unquantized model; from then on others are compared with it."""
        self.baselines, self.losses = [None] * len(self.texts), []
        return self._measure(self.model, simulated=False, decode=self.settings.decode)

    def checkpoint(self, folder: Path, simulated: bool, decode: int) -> dict[str, Any]:
        """What is measured on a quantized checkpoint. simulated: in floating point; decode: tokens to time."""
        if not self.losses:
            self.baseline()
        return self._measure(folder, simulated, decode)

    def _measure(self, folder: Path, simulated: bool, decode: int) -> dict[str, Any]:
        """The results on the first text, those on further texts by name under `also`, and what measuring took."""
        settings = PerplexitySettings(
            dataset=self.settings.dataset,
            seqlen=self.settings.seqlen,
            windows=self.settings.windows,
            batch=self.settings.batch,
            fake=simulated,
            decode=decode,
            kl=True,
        )
        (checkpoint,) = open_checkpoints([folder])
        results: list[dict[str, Any]] = []
        with StageMeter() as meter:
            model = load_model(folder, settings.dtype, settings.fake)
            for number, (text, reader) in enumerate(zip(self.texts, self.readers)):
                tokens = reader.read(folder)
                used = replace(settings, decode=0 if number else decode)
                result, nll, baseline = measure_model(
                    model, checkpoint, tokens, used, self.baselines[number], self.progress
                )
                if self.baselines[number] is None:
                    self.baselines[number] = baseline
                    self.losses.append(nll)
                ratio, interval = ratio_interval(nll, self.losses[number])
                dataset = text.record
                results.append(
                    {
                        **result,
                        "ratio_to_first": ratio,
                        "ratio_ci": as_list(interval),
                        "dataset": dataset,
                        "protocol": protocol_of(text.digest, tokens, used, result["logits_dtype"]),
                    }
                )
        also = {text.name: result for text, result in zip(self.texts[1:], results[1:])}
        return {
            **results[0],
            **({"also": also} if also else {}),
            "seconds": {"evaluate": meter.seconds},
            "peak_memory": {"evaluate": meter.peak_memory},
        }
