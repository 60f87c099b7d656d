"""Training samples in a target's own words: code, prose and chat, as a file for `dfq draft train --dataset`.

    python recipes/draft/target_samples.py --target packed --prose wikitext-2-raw --samples 512 --out samples.jsonl

A third each: the standard library of Python and a prose dataset, of which the first tokens of a window are the prompt
and the target writes the rest; and conversations of one turn, whose question the target makes up as well (Magpie, arXiv
2406.08464: a chat template up to the user's turn is a prompt for a question). Every other sample is greedy, the others
are drawn at --temperature from the likeliest tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfrot.data.chat import template_ids
from dfrot.data.text import calibration_windows, load_text
from dfrot.data.tokenizer import encode, load_tokenizer
from dfrot.generation.load_target import end_token_ids, load_target
from dfrot.generation.target import Target

ROWS = 16  # decoded together: what one native call serves
LIKELIEST = 64  # tokens that are drawn from
QUESTION_TOKENS = 64
MARKER = "QUESTION"  # stands for the question, to find where it goes in the chat template


@torch.no_grad()
def continued(
    target: Target, prompts: Sequence[list[int]], count: int, temperatures: Sequence[float], ends: frozenset[int]
) -> list[list[int]]:
    """Continuations of prompts of one length, at most `count` tokens, up to an end token, which is cut off."""
    cache = target.start()
    heat = torch.tensor([max(t, 1e-6) for t in temperatures])[:, None]
    greedy = torch.tensor([t == 0 for t in temperatures])
    ids = torch.tensor(list(prompts))
    done = torch.zeros(len(prompts), dtype=torch.bool)
    columns: list[Tensor] = []
    for _ in range(count):
        out = target.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = target.logits_rows(out.last_hidden_state[:, -1:])[:, 0].float()
        top = logits.topk(LIKELIEST)
        drawn = top.indices.gather(1, torch.multinomial((top.values / heat).softmax(-1), 1))[:, 0]
        token = torch.where(greedy, top.indices[:, 0], drawn)
        columns.append(token)
        done |= torch.tensor([int(value) in ends for value in token])
        if bool(done.all()):
            break
        ids = token[:, None]
    rows = torch.stack(columns, 1).tolist()
    return [row[: next((n for n, token in enumerate(row) if token in ends), len(row))] for row in rows]


def main() -> None:
    """Write the samples, one batch after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--prose", default="wikitext2")
    parser.add_argument("--samples", type=int, default=512, help="of each kind")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a text that the target continues")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    target, tokenizer = load_target(args.target), load_tokenizer(args.target)
    ends = end_token_ids(target)
    heats = [0.0, args.temperature] * (ROWS // 2)
    rows: list[dict[str, object]] = []
    for dataset in ("stdlib", args.prose):
        ids = encode(tokenizer, load_text(dataset, "train", tokenizer).text)
        windows = calibration_windows(ids, args.samples, args.prompt, args.seed)
        for part in torch.split(windows, ROWS):
            answers = continued(target, part.tolist(), args.seqlen - args.prompt, heats[: len(part)], frozenset())
            for prompt, answer in zip(part.tolist(), answers):
                rows.append({"prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(answer)})
            print(f"{dataset}: {len(rows)}", file=sys.stderr, flush=True)
    rows += chats(target, tokenizer, args, heats, ends)
    random.Random(args.seed).shuffle(rows)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chats(
    target: Target, tokenizer: object, args: argparse.Namespace, heats: list[float], ends: frozenset[int]
) -> list[dict[str, object]]:
    """Conversations of one question and its answer. Questions of one length are answered together."""
    template = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": MARKER}], tokenize=False
    ).split(MARKER)[0]
    opening = tokenizer(template, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    by_length: dict[int, list[tuple[str, list[int]]]] = {}
    for _ in range(0, args.samples, ROWS):
        for ids in continued(target, [opening] * ROWS, QUESTION_TOKENS, [1.0] * ROWS, ends):
            question = tokenizer.decode(ids).strip()  # type: ignore[attr-defined]
            if 2 < len(ids) < QUESTION_TOKENS and question:
                prompt = template_ids(tokenizer, [{"role": "user", "content": question}], True)
                by_length.setdefault(len(prompt), []).append((question, prompt))
    rows: list[dict[str, object]] = []
    for length, questions in sorted(by_length.items()):
        for begin in range(0, len(questions), ROWS):
            part = questions[begin : begin + ROWS]
            answers = continued(
                target, [prompt for _, prompt in part], max(2, args.seqlen - length), heats[: len(part)], ends
            )
            for (question, _), answer in zip(part, answers):
                if len(answer) > 2:
                    turns = [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": tokenizer.decode(answer)},  # type: ignore[attr-defined]
                    ]
                    rows.append({"messages": turns})
        print(f"chat: {len(rows)}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
