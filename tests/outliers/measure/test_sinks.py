"""Attention of sampled queries against transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dfrot.outliers.measure.block_view import BlockCapture, run_and_capture
from dfrot.outliers.measure.sinks import sampled_attention
from dfrot.outliers.measure.subject import Subject
from dfrot.runtime.load import load_model

MakeCheckpoint = Callable[..., Path]


def test_attention_is_that_of_transformers(small_llama: MakeCheckpoint) -> None:
    folder = small_llama()
    subject = Subject(folder)
    tokens = torch.randint(0, 256, (40,))
    capture = BlockCapture(0, 0, tokens, subject.runner.embed(tokens[None])[0])
    out = run_and_capture(subject.runner, subject.block(0), subject.arch, capture, None)
    probabilities, positions = sampled_attention(capture)
    model = load_model(folder)
    model.set_attn_implementation("eager")
    result = model(input_ids=tokens[None], output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(probabilities, result.attentions[0][0][:, positions], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out, result.hidden_states[1][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(capture.states["mlp.down_proj"], out, atol=1e-5, rtol=1e-5)
