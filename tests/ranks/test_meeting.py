"""How long a rank waits for the others: before they are all there, and while they connect."""

from __future__ import annotations

import datetime
import socket
import threading
import time

import pytest
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from dfrot.errors import ResourceError
from dfrot.ranks import watch
from dfrot.ranks.processes import ProcessRanks

TIMEOUT = 1.0
PATIENCE = 20.0  # seconds that a test may take on a busy machine; torch's own rule would be minutes


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def refusal(rank: int, port: int) -> str:
    """The message of a rank of two that waits in vain."""
    begin = time.monotonic()
    with pytest.raises(ResourceError) as caught:
        ProcessRanks(rank, 2, "127.0.0.1", port, TIMEOUT)
    assert time.monotonic() - begin < PATIENCE
    assert "\n" not in str(caught.value)
    assert caught.value.code == "rank_lost"
    return str(caught.value)


@pytest.mark.parametrize("rank", [0, 1])  # with and without the store that they meet at
def test_a_rank_alone(rank: int, port: int) -> None:
    line = refusal(rank, port)
    assert line.startswith(f"rank {rank} of 2 did not find the others at 127.0.0.1:{port} within 1 s (`rank_timeout`):")


@pytest.mark.parametrize("signs", [False, True])
def test_a_rank_that_is_lost_before_all_have_met(signs: bool, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to the store, with or without a sign of life, and no further."""
    monkeypatch.setattr(watch, "LISTEN", 1.0)
    stores = []

    def come() -> None:
        stores.append(TCPStore("127.0.0.1", port, 2, False, timeout=datetime.timedelta(seconds=PATIENCE)))
        if signs:
            PrefixStore("dfq-watch", stores[0]).set("sign/1", "0")

    other = threading.Thread(target=come)
    other.start()
    line = refusal(0, port)
    other.join()
    assert line.startswith("rank 1 of 2 died" if signs else "rank 1 of 2 did not come within 1 s (`rank_timeout`)")
