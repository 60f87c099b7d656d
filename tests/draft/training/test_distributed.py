"""Two processes that train together compute what one does, within rounding, unequal samples included."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.draft.store import load_draft
from dfrot.draft.training.distributed import LocalGroup
from dfrot_cli.main import main

OPTIONS = ("--held-out", "2", "--samples", "8", "--seqlen", "64", "--batch", "4", "--epochs", "2", "--evaluations", "2")


def arguments(data: Path, out: Path) -> list[str]:
    return ["draft", "train", "--model", "reference", "--dataset", str(data), "--out", str(out), *OPTIONS, "--json"]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations whose answers differ in length, so that a mean per process would be wrong."""
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = []
    for number in range(60):
        answer = "import os\n" + "x = 1\n" * (number % 9)
        turns = [{"role": "user", "content": f"write {number}"}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": turns}))
    file.write_text("\n".join(rows))
    return file


def curve(out: Path) -> tuple[list[float], list[float]]:
    """Training losses and held-out divergences."""
    history: list[dict[str, Any]] = json.loads((out / "stage.json").read_text())["history"]
    return [record["loss"] for record in history[1:]], [kl for record in history for kl in record["held_out_kl"]]


@pytest.fixture(scope="module")
def single_process(conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draft that a single process trains."""
    out = tmp_path_factory.mktemp("alone") / "one"
    result = CliRunner().invoke(main, arguments(conversations, out), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def run_two(code: str, *rest: str) -> list[tuple[int, bytes, bytes]]:
    """Exit status and output of two processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *rest],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    return [(*process.communicate(timeout=300), process.returncode)[::-1] for process in running]  # type: ignore[misc]


MAIN = "from dfrot_cli.main import main; main()"
DYING = """
from dfrot.draft.training.trainer import Trainer
step = Trainer._step
def dying(self, number):
    if number == 3:
        raise SystemExit(9)
    return step(self, number)
Trainer._step = dying
"""


def assert_same_curve(ours: Path, theirs: Path) -> None:
    for a, b in zip(curve(ours), curve(theirs)):  # sums of bfloat16 products in another order, two epochs of Adam
        assert torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-2), (a, b)


def test_two_processes_have_the_curve_of_one(conversations: Path, single_process: Path, tmp_path: Path) -> None:
    results = run_two(MAIN, *arguments(conversations, tmp_path / "two"), "--threads", "1")
    assert [status for status, _, _ in results] == [0, 0], results
    assert json.loads(results[0][2])["history"], "the first process reports"
    assert results[1][1:] == (b"", b""), "the second one does not"
    assert_same_curve(single_process, tmp_path / "two")
    losses, _ = curve(single_process)
    assert len(losses) == 2
    assert losses[0] != pytest.approx(losses[1], rel=3e-2), "a curve that does not move would prove nothing"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow  # several runs of torchrun
def test_a_killed_sharded_run_resumes(conversations: Path, single_process: Path, tmp_path: Path) -> None:
    """On as many processes, and on a single one without sharding: the same curve, and an ordinary draft."""
    out = tmp_path / "shared"
    command = (*arguments(conversations, out), "--threads", "1")
    killed = run_two(DYING + MAIN, *command, "--shard")
    assert [status for status, _, _ in killed] == [9, 9], killed
    assert not out.exists()
    shutil.copytree(tmp_path / ".shared.partial", tmp_path / ".single.partial")
    results = run_two(MAIN, *command, "--shard", "--resume")
    assert [status for status, _, _ in results] == [0, 0], results
    assert_same_curve(single_process, out)
    single = CliRunner().invoke(
        main, [*arguments(conversations, tmp_path / "single"), "--resume"], catch_exceptions=False
    )
    assert single.exit_code == 0, single.output
    assert_same_curve(single_process, tmp_path / "single")
    sharded = load_draft(out).state_dict()
    for name, value in load_draft(single_process).state_dict().items():
        assert torch.allclose(sharded[name], value, rtol=0.1, atol=2e-2), name


SPLIT = """
import json, os, sys
import torch
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.training.optim import AdamW
from dfrot.draft.training.distributed import LocalGroup, DistributedGroup
from dfrot.draft.training.distributed import local_part

torch.set_num_threads(1)
arch = sys.argv[1]
rank = int(os.environ["RANK"])
group = DistributedGroup(rank, 2, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), shard=True)
aux = (1, 2, 3) if "dream" not in arch else ()
blocks = {"num_layers": 2, "block_size": 4} if arch == "dflash" else {}
config = DraftConfig(arch, 64, 64, 96, 4, 2, 16, 50, aux_layers=aux, max_position_embeddings=64, **blocks)
generator = torch.Generator().manual_seed(1)
embeddings = torch.randn(2, 8, 64, generator=generator)
features = torch.randn(2, 8, config.feature_size, generator=generator)
head = torch.randn(50, 64, generator=generator)


def gradients(group, rows):
    torch.manual_seed(0)
    draft = build(config)
    count = draft.count()
    group.shard(draft)
    optimizer = AdamW(draft, 0.0, 1e9, group)
    out = draft.train_forward(embeddings[rows], torch.arange(8).expand(len(rows), -1), features[rows], 2)
    loss = sum(draft.logits(output, lambda x: x @ head.T).pow(2).sum() for output in out.outputs)
    loss.backward()
    group.sum_gradients(draft.parameters(), torch.zeros(1))
    gathered = {name: group.gather(p.grad).clone() for name, p in optimizer.named.items()}
    held = [sum(local_part(p.grad).numel() for p in optimizer.named.values())]
    optimizer.step(1e-3)
    held.append(sum(local_part(p).numel() for p in optimizer.named.values()))
    moments = optimizer.state().items()
    for kind in ("exp_avg/", "exp_avg_sq/"):
        held.append(sum(local_part(value).numel() for name, value in moments if name.startswith(kind)))
    return gathered, held, count, {name: group.gather(p.detach()).clone() for name, p in optimizer.named.items()}


split, held, count, after = gradients(group, torch.tensor([rank]))
single, _, _, expected = gradients(LocalGroup(), torch.tensor([0, 1]))
for name, gradient in single.items():
    assert torch.allclose(split[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name
    assert torch.allclose(after[name], expected[name], atol=1e-4), name
print(json.dumps([held, count]))
group.leave()
"""


@pytest.mark.parametrize("arch", ["dream", "eagle3", "dflash"])
def test_shards_are_half_of_everything(arch: str) -> None:
    """Gradients, parameters and both moments; and they are those of one process."""
    results = run_two(SPLIT, arch)
    assert [status for status, _, _ in results] == [0, 0], results
    parts = [json.loads(output) for _, _, output in results]
    for kind in range(4):
        assert sum(held[kind] for held, _ in parts) == parts[0][1], "nothing twice, nothing lost"
        for held, count in parts:
            assert held[kind] == pytest.approx(count / 2, rel=0.02)


def test_sharding_needs_several_processes(conversations: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*arguments(conversations, tmp_path / "out"), "--shard"])
    assert result.exit_code == 2
    assert "start with torchrun" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_incomplete_environment_is_refused(
    conversations: Path, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in known.items():
        monkeypatch.delenv(name, raising=False)
        if name != missing:
            monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, arguments(conversations, tmp_path / "out"))
    assert result.exit_code == 2
    assert "torchrun" in result.stderr
    assert result.stderr.count("\n") == 1


def test_shares_add_up() -> None:
    index = torch.arange(7)
    parts = []
    for rank in range(3):
        group = LocalGroup()
        group.rank, group.size = rank, 3
        parts.append(group.share(index))
    assert sorted(torch.cat(parts).tolist()) == index.tolist()
