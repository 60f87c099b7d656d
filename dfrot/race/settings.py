"""Settings of `dfq bench models`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.settings import check, dataset_setting, setting

PEERS = ("torch", "llama.cpp", "ik_llama.cpp", "openvino", "onnxruntime", "vllm")


@dataclass(frozen=True)
class RaceSettings:
    """Which engines race, and over what."""

    peers: tuple[str, ...] = setting(
        PEERS, choices=PEERS, listed=True, metavar="A,B", help=f"Engines beside dfq, of {', '.join(PEERS)}."
    )
    engines: Path = setting(
        Path("build/peers"), metavar="DIR", help="Folder of the engines' environments, which make peers sets up."
    )
    files: Path | None = setting(
        None, metavar="DIR", help="Folder that keeps the engines' own 4-bit models. Default: models/ beside them."
    )
    prompts: tuple[int, ...] = setting(
        (32, 512, 4096),
        minimum=1,
        listed=True,
        metavar="N,N",
        help="Prompts whose time to the first token is measured.",
    )
    cached: tuple[int, ...] = setting(
        (128, 4096), minimum=1, listed=True, metavar="N,N", help="Cached tokens behind which decoding is measured."
    )
    decode: int = setting(32, minimum=1, help="Tokens decoded per sample, no end token.")
    repeats: int = setting(5, minimum=1, help="Samples per measurement, taken in turns; medians are shown.")
    long_repeats: int = setting(2, minimum=1, help="Samples of prompts above 1,024 tokens.")
    dataset: str = dataset_setting("stdlib", "Text of the prompts and of the perplexities.")
    seqlen: int = setting(512, minimum=2, help="Tokens of a window of the perplexities.")
    windows: int = setting(4, minimum=1, help="Windows of the perplexities.")
    max_ratio: float = setting(
        1.5, above=1, help="Perplexity over that of 16 bits beyond which a contender is out of the ranking."
    )
    timeout: float = setting(300.0, above=0, help="Seconds after which a contender's answer is no longer waited for.")

    def __post_init__(self) -> None:
        check(self)
