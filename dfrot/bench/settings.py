"""Settings of `dfq bench rotate|kernels|generate|draft|evaluate|serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.errors import InputError
from dfrot.settings import check, dataset_setting, same_as, seed_setting, setting

_PRESET = "Size of the model, with random weights: tiny, 160m, 1.1b, 3b or 8b."


@dataclass(frozen=True)
class RefinementBenchSettings:
    """The problem on which the refinement is timed beside the straightforward algorithm."""

    width: int = setting(4096, minimum=16, help="Hidden size.")
    rows: int = setting(16 * 2048, minimum=64, help="Calibration rows.")
    rounds: int = setting(25, minimum=1, help="Refinement rounds.")
    bits: int = setting(4, minimum=2, maximum=8, help="Activation bits.")
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FigureBenchSettings:
    """The activations whose 4-bit error per token is drawn, by rotation."""

    width: int = same_as(RefinementBenchSettings, "width")
    common: int = same_as(RefinementBenchSettings, "rows", default=2048, help="Rows of common tokens.")
    rounds: int = same_as(RefinementBenchSettings, "rounds", default=12)
    bits: int = same_as(RefinementBenchSettings, "bits")
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class KernelBenchSettings:
    """Which operators are timed, and on which sizes."""

    ops: tuple[str, ...] = setting(
        (), listed=True, metavar="A,B", help="Operators to measure. Default: all that the benchmark supports."
    )
    shapes: tuple[tuple[int, int], ...] = setting(
        ((4096, 4096), (14336, 4096), (4096, 14336)),  # of Llama-3-8B
        listed=True,
        metavar="NxK,..",
        help="Weights: output times input width.",
    )
    rows: tuple[int, ...] = setting((1, 4, 8, 512), minimum=1, listed=True, metavar="M,..", help="Activation rows.")
    group: int = setting(0, minimum=0, help="Columns that share a scale; 0 for one scale per output channel.")
    context: int = setting(8192, minimum=1, help="Tokens in the KV cache, for attention.")
    repeats: int = setting(7, minimum=1, help="Samples per measurement, taken in turns.")
    with_peers: bool = setting(True, option="--peers/--no-peers", help="Also time torch's kernels.")
    cached: bool = setting(False, help="Use operands that caches may hold, not ones that come from memory.")
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class GenerateBenchSettings:
    """Which whole models are timed at batch 1."""

    shape: str = setting("1.1b", help=_PRESET)
    model: Path | None = setting(None, metavar="DIR", help="A checkpoint to time in place of a random model.")
    schemes: tuple[str, ...] = setting(
        ("w4a16kv16", "w4a8kv4", "w4a4kv4"), listed=True, metavar="A,B", help="Schemes of the random model."
    )
    prefill: int = setting(512, minimum=1, help="Tokens of the prompt whose prefill is timed.")
    decode: int = setting(32, minimum=1, help="Tokens generated per sample.")
    repeats: int = setting(3, minimum=1, help="Samples per measurement, taken in turns.")
    peer: bool | None = setting(
        None,
        option="--peer/--no-peer",
        help="Insist on llama.cpp beside dfq, or leave it out. Default: where it is installed.",
    )
    with_memory: bool = setting(True, option="--memory/--no-memory", help="Also measure peak memory.")
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DraftBenchSettings:
    """For which model and drafts the costs of drafting are measured."""

    shape: str = setting("1.1b", help=_PRESET)
    scheme: str = setting("w4a4kv4", help="Scheme of the model.")
    rows: tuple[int, ...] = setting(
        (1, 2, 4, 8, 16, 32, 64), minimum=1, listed=True, metavar="N,N", help="Rows of the verify passes to time."
    )
    drafts: tuple[str, ...] = setting(
        ("bfloat16", "w4"), listed=True, metavar="A,B", help="Precisions of the draft: bfloat16, w4 or w8."
    )
    prompt: int = setting(128, minimum=2, help="Positions in the KV cache.")
    repeats: int = setting(5, minimum=1, help="Samples per measurement, taken in turns.")
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class EvaluateBenchSettings:
    """On which text the loss of a checkpoint is timed."""

    dataset: str = dataset_setting("stdlib", "Text to evaluate on.")
    seqlen: int = setting(1024, minimum=2, help="Tokens of a window.")
    windows: int = setting(4, minimum=1, metavar="N", help="Evaluate the first N windows only.")
    batch: int = setting(1, minimum=1, help="Windows per forward pass.")
    dtype: str | None = setting(
        None,
        choices=("float32", "bfloat16", "float16"),
        help="Data type of the computation. Default: the checkpoint's own.",
    )
    repeats: int = setting(3, minimum=1, help="Samples per measurement, taken in turns.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ServeBenchSettings:
    """What clients ask a server for, and how many of them at a time."""

    url: str = setting(metavar="URL", help="The server, an OpenAI-compatible one, such as http://127.0.0.1:8000/v1 is.")
    clients: tuple[int, ...] = setting(
        (1, 4, 16, 64), minimum=1, listed=True, metavar="N,N", help="Numbers of clients, one after the other."
    )
    requests: int = setting(64, minimum=1, help="Requests for each number of clients; at least one per client.")
    prompt: tuple[int, ...] = setting(
        (16, 384), minimum=1, listed=True, metavar="N,N", help="Fewest and most words of a prompt; most are short."
    )
    answer: tuple[int, ...] = setting(
        (16, 128), minimum=2, listed=True, metavar="N,N", help="Fewest and most tokens of an answer."
    )
    shared: int = setting(0, minimum=0, help="Words that all prompts begin with, besides their own.")
    name: str | None = setting(None, metavar="ID", help="The model's name. Default: the first that the server names.")
    ignore_eos: bool = setting(
        True,
        option="--ignore-eos/--no-ignore-eos",
        help="Ask for answers of exactly that length, in a field that not every server has.",
    )
    timeout: float = setting(600.0, above=0, help="Seconds after which a request counts as failed.")
    api_key: str | None = setting(None, metavar="KEY", help="The key that the server wants.")
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)
        for name in ("prompt", "answer"):
            if len(ends := getattr(self, name)) != 2 or ends[0] > ends[1]:
                raise InputError(f"`{name}` {ends}: two numbers, the smaller one first", field=name)
