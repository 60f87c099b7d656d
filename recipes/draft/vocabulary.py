"""What a draft vocabulary of N tokens costs in acceptance and saves in time: a table, and a plot.

    python recipes/draft/vocabulary.py --target packed --features features --draft eagle3 --draft dream \
        --out vocabulary.json --figure vocabulary.svg

Nothing is trained: of every draft the N tokens that are most frequent in its training text are kept, and the other rows
of its head left out. A draft that was itself trained with a vocabulary of its own cannot say more than that, unless its
head is the target's (dream). Acceptance is the simulated length on the held-out samples of the features. Times are
those of an untrained draft of the same sizes with N rows, in 4 bits, sizes in turns, the shortest of --repeats. The
head is in 4 bits in these times, and in 16 where acceptance is computed; --rounded-head w4 or w8 changes both.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.bench.plotting import DPI, new_figure
from dfrot.draft.load import load_draft_in
from dfrot.draft.models.base import Draft, Head
from dfrot.draft.models.build import build
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.draft.proposal_head import trimmed_head
from dfrot.draft.quantize import quantize_draft
from dfrot.draft.training.draft_vocabulary import choose_vocabulary
from dfrot.draft.training.settings import TrainSettings
from dfrot.draft.training.stored_features import StoredFeatures
from dfrot.draft.training.trainer import Trainer
from dfrot.generation.load_target import load_target
from dfrot.generation.speculation.latency_probe import LatencyProbe
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target

SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 0)
"""Tokens that are kept; 0: all of the target's."""
CHAINS = (1, 2, 3, 4)
CONTEXT, ROOM = 64, 40  # tokens before the timed ones, and room behind them


def trimmed(draft: Draft, ids: Tensor | None) -> Draft | None:
    """A draft that proposes the tokens `ids` alone (None: all of the target's), with the weights of `draft`; None where
    its head does not have them."""
    own = draft.token_ids
    if isinstance(draft, Eagle3Draft):
        known = torch.arange(draft.config.vocab_size) if own is None else own
        if (ids is None and own is not None) or (ids is not None and not torch.isin(ids, known).all()):
            return None
        columns = None if ids is None else torch.searchsorted(known, ids)
        whole = draft.logits
        if columns is not None:
            draft.logits = lambda output, head: whole(output, head)[..., columns]  # type: ignore[method-assign]
    draft.config = replace(draft.config, draft_vocab_size=0 if ids is None else len(ids))
    draft.d2t = None if ids is None else ids - torch.arange(len(ids))
    return draft


def untrained(draft: Draft, ids: Tensor | None, head: str) -> Draft:
    """A draft of the same sizes in 4 bits for the tokens `ids`, for its times. head: `w8`, or empty for 4 bits."""
    changes = {"draft_vocab_size": 0 if ids is None else len(ids), "quantized": "", "quantized_head": ""}
    timed = build(replace(draft.config, **changes))  # type: ignore[arg-type]
    if ids is not None:
        timed.choose_tokens(ids)
    quantize_draft(timed, "w4", head)
    timed.config = replace(timed.config, quantized="w4", quantized_head=head)
    return timed.requires_grad_(False).eval().to(torch.bfloat16)


def probe_of(target: Target, draft: Draft) -> LatencyProbe:
    """A probe behind a text of `CONTEXT` tokens."""
    return LatencyProbe.after_prompt(target, draft, list(range(100, 100 + CONTEXT)), ROOM)


def milliseconds(probes: dict[int, LatencyProbe], repeats: int) -> tuple[dict[int, dict[int, float]], dict[str, float]]:
    """By size and chain the time of drafting, in turns; and of a plain step and of verify passes by chain."""
    draft: dict[int, dict[int, float]] = {size: {} for size in probes}
    target: dict[str, float] = {}
    for _ in range(repeats):
        for size, probe in probes.items():
            probe.known.clear()
            for n in CHAINS:
                draft[size][n] = min(1e3 * probe.draft(TreeShape(n)), draft[size].get(n, float("inf")))
        one = next(iter(probes.values()))
        times = {"step": one.step, **{f"verify {n}": one.verify_chain(n) for n in CHAINS}}
        target = {name: min(1e3 * time, target.get(name, float("inf"))) for name, time in times.items()}
    return draft, target


def rows_of(head: Head) -> Head:
    """A head that takes rows [k, d], for features [..., d]."""
    return lambda x: head(x.flatten(0, -2).to(torch.bfloat16)).unflatten(0, x.shape[:-1])


def lengths(agreement: list[float]) -> dict[int, float]:
    """The acceptance length of every chain of `CHAINS` that these agreements promise; the last one goes on."""
    product, total, out = 1.0, 1.0, {}
    for n in range(1, max(CHAINS) + 1):
        product *= agreement[min(n, len(agreement)) - 1]
        total += product
        out[n] = total
    return {n: out[n] for n in CHAINS}


class Measured:
    """One draft: its vocabularies, its times, then its acceptance."""

    def __init__(
        self, folder: Path, target: Target, source: StoredFeatures, sizes: list[int], repeats: int, head: str | None
    ) -> None:
        """head: `w4` or `w8`, see the module; None: neither was asked for."""
        self.folder, self.target, self.source, self.head = folder, target, source, head
        self.in_8_bits = "w8" if head == "w8" else ""
        self.vocab = load_draft_in(folder, "float32").config.vocab_size
        chosen = {n: choose_vocabulary(source.corpus("train"), n or None, self.vocab) for n in sizes}
        self.ids = {n: None if vocabulary is None else vocabulary.ids for n, vocabulary in chosen.items()}
        draft = load_draft_in(folder, "bfloat16")
        probes = {n: probe_of(target, untrained(draft, ids, self.in_8_bits)) for n, ids in self.ids.items()}
        self.draft_ms, self.target_ms = milliseconds(probes, repeats)

    def result(self) -> dict[str, Any]:
        """Everything, JSON."""
        held_out, step = self.source.corpus("held_out"), self.target_ms["step"]
        said, rows = held_out.tokens[held_out.mask], []
        for n, ids in self.ids.items():
            row: dict[str, Any] = {"size": n or self.vocab, "ms": self.draft_ms[n]}
            row["coverage"] = 1.0 if ids is None else float(torch.isin(said, ids).double().mean())
            draft = trimmed(load_draft_in(self.folder, "float32"), ids)
            if draft is not None:
                tools = (self.target.embed, self.target.head, TrainSettings(), Path())
                own_head = None
                if self.head is not None and ids is not None:
                    draft.config = replace(draft.config, quantized="w4", quantized_head=self.in_8_bits)
                    own_head = rows_of(trimmed_head(self.target, draft, ids))
                losses = Trainer(draft, self.source, *tools, own_head=own_head).measure()
                tau = lengths(losses.agreement)
                cost = {k: (self.target_ms[f"verify {k}"] + self.draft_ms[n][k]) / step for k in CHAINS}
                speed = {k: tau[k] / cost[k] for k in CHAINS}
                best = max(speed, key=lambda k: speed[k])
                row |= {"tau": losses.simulated_tau, "agreement": losses.agreement}
                row |= {"chain": best, "speedup": speed[best]}
            rows.append(row)
        return {
            "draft": self.folder.name,
            "arch": draft_arch(self.folder),
            "target_ms": self.target_ms,
            "rows": rows,
        }


def draft_arch(folder: Path) -> str:
    """The architecture of the draft in a folder."""
    return str(json.loads((folder / "draft.json").read_text())["arch"])


def table(result: dict[str, Any]) -> str:
    """The rows of one draft as Markdown."""
    target = result["target_ms"]
    passes = ", ".join(f"{target[f'verify {n}']:.2f}" for n in CHAINS)
    lines = [
        f"{result['draft']} ({result['arch']}); a plain step takes {target['step']:.2f} ms, verifying 1 to 4: {passes}",
        "| tokens | of held-out text | tau (simulated) | agreement by step | chain 1, ms | chain 3, ms | speedup |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        known = "tau" in row
        agreement = " ".join(f"{share:.3f}" for share in row["agreement"]) if known else ""
        lines.append(
            f"| {row['size']:,} | {row['coverage']:.4f} | {row['tau'] if known else float('nan'):.3f} | {agreement} | "
            f"{row['ms'][1]:.3f} | {row['ms'][3]:.3f} | "
            + (f"{row['speedup']:.3f} (chain {row['chain']}) |" if known else "|")
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Acceptance length, time of a chain of three, and expected speedup over the number of tokens."""
    figure = new_figure(11, 3.6)
    axes: Any = figure.subplots(1, 3)
    panels = (("acceptance length", "tau"), ("chain of 3, ms", None), ("expected speedup", "speedup"))
    for axis, (label, name) in zip(axes, panels):
        for result in results:
            rows = [row for row in result["rows"] if name is None or name in row]
            values = [row["ms"][3] if name is None else row[name] for row in rows]
            axis.plot([row["size"] for row in rows], values, marker="o", label=result["draft"])
        axis.set(xscale="log", xlabel="tokens that the draft can say", ylabel=label)
        axis.grid(True, alpha=0.25)
    axes[0].legend()
    figure.savefig(path, dpi=DPI)


def main() -> None:
    """Measure every draft, print the tables, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--features", type=Path, action="append", required=True, help="one per draft, or one for all")
    parser.add_argument("--draft", type=Path, action="append", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounded-head", choices=("w4", "w8"), nargs="?", const="w4", help="dream: read the head's rows rounded, too"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    drafts, results = [], []
    for number, folder in enumerate(arguments.draft):
        features = StoredFeatures(arguments.features[min(number, len(arguments.features) - 1)])
        target = load_target(arguments.target, load_draft_in(folder, "float32").aux_layers)
        head = arguments.rounded_head
        drafts.append(Measured(folder, target, features, arguments.sizes, arguments.repeats, head))
    print("times are measured", flush=True)
    for draft in drafts:
        results.append(draft.result())
        print(table(results[-1]), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.figure:
        plot(results, arguments.figure)


if __name__ == "__main__":
    main()
