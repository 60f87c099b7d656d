"""Fetching a model from the hub into its cache: what is fetched, progress through a callback, refusals in one line.

A connection that drops is taken up where it dropped, and the next run fetches only files that are not complete. The
client's own progress bars are not shown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfrot.errors import ResourceError
from dfrot.progress import Progress

FETCHED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
# the same weights once more in other layouts; of folders only additional_chat_templates/ is wanted
NOT_FETCHED = ("consolidated*", "*/*.safetensors", "*/*.json")
TIMEOUT = 4.0  # seconds for the hub's first answer
MEGABYTE = 1_000_000


def download(name: str, hub_id: str, revision: str | None, progress: Progress, hint: str = "") -> Path:
    """Fetch a model into the hub cache.

    Args:
        name: as messages say it.
        hub_id: OWNER/NAME.
        revision: a branch, tag or commit; None: the main branch.
        progress: called with megabytes.
        hint: one more remedy for a machine without a network.

    Raises ResourceError when that is not possible, with the remedy."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with silent_client():
            folder: Any = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(FETCHED),
                ignore_patterns=list(NOT_FETCHED),
                etag_timeout=TIMEOUT,
                tqdm_class=_reporting_bar(f"download {name}", progress),
            )
    except GatedRepoError:
        raise ResourceError(
            f"{name}: access is restricted; accept its licence on its hub page and set HF_TOKEN to a token of "
            "that account, or give as `model` a folder with its files",
            field="model",
        ) from None
    except RevisionNotFoundError:
        raise ResourceError(f"{name}: the hub does not have this revision; check branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise ResourceError(
            f"{name}: the hub does not show it; check the name, or set HF_TOKEN to a token that may read it"
        ) from None
    except Exception as error:  # no network, a proxy, a full disk, a timeout: many types, one meaning
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        raise ResourceError(
            f"{name}: is neither a folder here nor in the hub cache {constants.HF_HUB_CACHE}, and cannot be fetched "
            f"({reason}); put config.json, *.safetensors and the tokenizer files into a folder and give that as "
            f"`model`, or set HF_TOKEN where a token is needed{hint}",
            field="model",
        ) from None
    return Path(folder)


def fetch_small_files(hub_id: str, patterns: Sequence[str], revision: str | None = None) -> Path | None:
    """The folder in the hub's cache with those files of a model that match `patterns`, which must not match weights;
    None where they cannot be fetched: no network, no access."""
    from huggingface_hub import snapshot_download

    try:
        with silent_client():
            folder: Any = snapshot_download(
                hub_id, revision=revision, allow_patterns=list(patterns), etag_timeout=TIMEOUT
            )
            return Path(folder)
    except Exception:  # of many types; the caller says what was not compared
        return None


@contextmanager
def silent_client() -> Iterator[None]:
    """While active, the hub client shows no progress bars of its own and logs errors only: refusals say the rest."""
    from huggingface_hub import utils

    client: Any = utils
    before, logger = client.are_progress_bars_disabled(), logging.getLogger("huggingface_hub")
    level = logger.level
    client.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not before:
            client.enable_progress_bars()


def _reporting_bar(label: str, progress: Progress) -> Any:
    """A class of bars for the hub client that show nothing and report megabytes: the furthest of its bars that count
    bytes. It has the interface of tqdm that the client uses."""
    from tqdm import tqdm

    counts: dict[int, tuple[float, float]] = {}  # of every bar

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.in_bytes = options.get("unit") == "B"
            options.pop("name", None)  # of the client's own class
            super().__init__(*args, **{**options, "disable": False, "mininterval": 0.5, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> Any:
            shown = super().update(n)
            if self.in_bytes and self.total:
                counts[id(self)] = (self.n, self.total)
                count, total = max(counts.values())
                progress(label, int(min(count, total) / MEGABYTE), -(-int(total) // MEGABYTE))
            return shown

    return Bar


class _Nowhere:
    """A stream that forgets what is written."""

    def write(self, text: str) -> None:
        """Forget it."""

    def flush(self) -> None:
        """Nothing to do."""
