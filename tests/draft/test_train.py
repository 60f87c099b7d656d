"""Training: the loss is what it says, a killed run ends in the same bytes, a trained draft is better, and nothing that
does not belong together is put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.data.chat import answer_mask
from dfrot.draft.models.base import TrainOutput
from dfrot.draft.store import check_target, load_draft, save_draft
from dfrot.draft.training.corpus import load_corpora, of_windows
from dfrot.draft.training.init_from_target import dense, init_from_target
from dfrot.draft.training.loss import Teacher, losses, simulated_tau, slots_of_step
from dfrot.draft.training.settings import LossWeights, TrainSettings
from dfrot.draft.training.sources import LiveFeatures
from dfrot.draft.training.stored_features import StoredFeatures
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.draft.training.train_state import STATE
from dfrot.draft.training.trainer import Trainer
from dfrot.errors import DfqError, InputError, MismatchError
from dfrot.files import write_json
from dfrot.generation.target import Target
from dfrot.vision.fingerprint import checkpoint_fingerprint

Get = Callable[..., Target]


def online(target: Target, select: str = "sample") -> LiveFeatures:
    """Text that the target wrote itself, so that there is something to learn."""
    from dfrot.draft.training.regenerate import continuations

    source = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 96, (12, 6), generator=source)
    rows = torch.cat([prompts, continuations(target, prompts, 18)], 1)
    return LiveFeatures(target, of_windows(rows[:8], 6), of_windows(rows[8:], 6), select)


def trainer(target: Target, draft: Any, folder: Path, **changes: Any) -> Trainer:
    options = TrainSettings(**{"epochs": 6, "batch": 4, "evaluations": 3, "bf16": False, "lr": 3e-3, **changes})
    return Trainer(draft, online(target), target.embed, target.head, options, folder)


def test_divergence_is_summed_over_the_vocabulary() -> None:
    teacher, student = torch.randn(5, 30), torch.randn(5, 30, requires_grad=True)
    ours = Teacher.of(teacher).divergence(student)
    p = torch.distributions.Categorical(logits=teacher)
    q = torch.distributions.Categorical(logits=student)
    assert torch.allclose(ours, torch.distributions.kl_divergence(p, q), atol=1e-5)
    ours.sum().backward()
    assert torch.allclose(student.grad, student.softmax(-1) - teacher.softmax(-1), atol=1e-5)
    padded = torch.cat([teacher, torch.full((5, 7), -1e4)], -1), torch.cat([student, torch.full((5, 7), -1e4)], -1)
    assert torch.allclose(Teacher.of(padded[0]).divergence(padded[1]), ours, atol=1e-4)


def test_loss_ignores_what_does_not_count(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, weight = kit.random_draft(), torch.randn(kit.vocab, 64)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:] = mask[1, 5:7] = True
    outputs = [torch.randn(2, 9, 64) for _ in range(3)]
    given = TargetFeatures(torch.randn(2, 9, 64), torch.randn(2, 9, 64))

    def head(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.T

    found = losses(draft, TrainOutput(outputs, outputs[0]), given, mask, head, LossWeights())
    changed = [out.where(mask[..., None], torch.randn(2, 9, 64)) for out in outputs]
    again = losses(draft, TrainOutput(changed, changed[0]), given, mask, head, LossWeights())
    assert torch.allclose(found.total, again.total)
    assert slots_of_step(mask, 1)[1].nonzero().flatten().tolist() == [6]
    monkeypatch.setattr("dfrot.draft.training.loss.CHUNK_BYTES", 4 * kit.vocab * 3)
    leaves = [out.clone().requires_grad_() for out in outputs]
    chunked = losses(draft, TrainOutput(leaves, leaves[0]), given, mask, head, LossWeights())
    assert torch.allclose(chunked.total, found.total, atol=1e-5)
    chunked.total.backward()
    assert leaves[2].grad is not None
    assert bool((leaves[2].grad.abs().sum(-1) > 0)[slots_of_step(mask, 2)].all())


@torch.no_grad()
def test_guesses_are_counted_by_rank(kit: SimpleNamespace) -> None:
    """By hand: how often the target's argmax is the draft's guess of each rank, and its mean probability of it."""
    draft, weight = kit.random_draft(), torch.randn(kit.vocab, 64)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:] = mask[1, 5:8] = True
    last = torch.randn(2, 9, 64)
    outputs = [last + spread * torch.randn(2, 9, 64) for spread in (0.5, 2.0)]
    found = losses(draft, TrainOutput(outputs, None), TargetFeatures(last), mask, lambda x: x @ weight.T, LossWeights())
    teacher = last @ weight.T
    for t, output in enumerate(outputs):
        order = (output @ weight.T).argsort(-1, descending=True)
        where = slots_of_step(mask, t)
        for rank in range(4):
            guess = order[..., rank]
            stands = (guess == teacher.argmax(-1))[where].float().mean()
            mass = teacher.softmax(-1).gather(-1, guess[..., None])[..., 0][where].mean()
            assert found.ranks[t][rank] == pytest.approx(float(stands), abs=1e-6)
            assert found.mass[t][rank] == pytest.approx(float(mass), abs=1e-5)
    assert found.agreement == [step[0] for step in found.ranks]
    assert 0 < found.agreement[1] < found.agreement[0] <= 1
    silent = losses(
        draft, TrainOutput(outputs, None), TargetFeatures(last), mask, lambda x: x @ weight.T, LossWeights(), False
    )
    assert silent.ranks == silent.mass == []


def test_simulated_tau() -> None:
    assert simulated_tau([]) == 1
    assert simulated_tau([0.5, 0.5]) == 1.75


@pytest.mark.parametrize("arch", ["dream", "eagle3"])
def test_a_stopped_run_ends_in_the_same_bytes(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets("llama-kv4", (1, 2, 3) if arch == "eagle3" else ())
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    draft = kit.random_draft(arch).requires_grad_(True)
    history = trainer(target, draft, whole).run()

    class Killed(Exception):
        pass

    for after in (2, 9):  # before the first state is saved again, and between two others
        broken = trainer(target, kit.random_draft(arch).requires_grad_(True), parts)
        step = broken._step

        def dying(number: int, after: int = after, step: Any = step) -> Any:
            if number == after:
                raise Killed
            return step(number)

        monkeypatch.setattr(broken, "_step", dying)
        with pytest.raises(Killed):
            broken.run()
    resumed = kit.random_draft(arch).requires_grad_(True)
    assert trainer(target, resumed, parts).run() == history
    assert (parts / STATE).read_bytes() == (whole / STATE).read_bytes()
    for name, value in draft.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_training_helps(targets: Get, kit: SimpleNamespace, tmp_path: Path) -> None:
    target, draft = targets("llama-kv4"), kit.random_draft().requires_grad_(True)
    history = trainer(target, draft, tmp_path, epochs=20, lr=5e-3).run()
    assert history[-1]["held_out_kl"][0] < history[0]["held_out_kl"][0] - 0.1
    best = max(record["simulated_tau"] for record in history)
    run = trainer(target, draft, tmp_path / "no-state")
    assert run.measure().simulated_tau == pytest.approx(best)


def test_a_warm_start_copies_blocks(targets: Get, kit: SimpleNamespace) -> None:
    target = targets("llama")
    draft = kit.random_draft().requires_grad_(True)
    done = init_from_target(draft, target)
    assert len(done) == 19
    layer = target.layers[0]
    assert torch.equal(draft.first.mlp.up_proj.weight, layer.mlp.up_proj.weight)
    x = torch.randn(2, 96)
    assert torch.allclose(dense(layer.mlp.down_proj) @ x.T, layer.mlp.down_proj(x).T, atol=1e-5)


def test_dense_weights_take_unrotated_inputs() -> None:
    """A rotated linear's weight is turned back, packed or not."""
    from dfrot.quant.dense_linear import DenseLinear
    from dfrot.quant.linear import QuantLinear
    from dfrot.quant.plan import LinearPlan
    from dfrot.rotation.hadamard import hadamard_plan
    from dfrot_kernels.layouts import PackedWeight

    x, spec = torch.randn(5, 96), hadamard_plan(96)
    rotated = DenseLinear(
        LinearPlan("d", 64, 96, False, 16, 0, True, 16, False, 1.0, spec), False, torch.float32, torch.float32
    )
    rotated.weight.data.normal_()
    rotated.prepare("d")
    assert torch.allclose(x @ dense(rotated).T, rotated(x), atol=1e-4)
    packed = QuantLinear(LinearPlan("p", 64, 96, True, 4, 0, True, 16, False, 1.0, spec), False, torch.float32)
    codes = torch.randint(0, 16, (64, 96), dtype=torch.uint8)
    stored = PackedWeight.from_codes(codes, torch.full((64, 1), 0.25).bfloat16(), None, 4, 0)
    packed.load_state_dict({"weight_packed": stored.packed, "weight_scale": stored.scale})
    packed.prepare("p")
    assert torch.allclose(x @ dense(packed).T, packed(x), atol=1e-2)


# --- what belongs together --------------------------------------------------------------------------------------


def test_saved_drafts_load_and_strangers_are_refused(kit: SimpleNamespace, tmp_path: Path, reference: Path) -> None:
    draft = kit.random_draft()
    save_draft(tmp_path, draft, torch.float32)
    loaded = load_draft(tmp_path)
    assert loaded.config == draft.config
    for name, value in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(MismatchError, match="vocabulary"):
        check_target(draft.config, reference, 4096, 64, force=True)
    with pytest.raises(MismatchError, match="is not the target"):
        check_target(draft.config, reference, kit.vocab, 64)
    check_target(draft.config, reference, kit.vocab, 64, force=True)
    config = json.loads((tmp_path / "draft.json").read_text())
    for change, message in (
        ({"arch": "unknown"}, "unknown"),
        ({"surprise": 1}, "unknown key"),
        ({"hidden_size": -1}, "positive integer"),
        ({"intermediate_size": 128}, "shape"),
        ({"num_final_layers": 2}, "missing"),
        ({"num_final_layers": 0}, "not part of"),
    ):
        write_json(tmp_path / "draft.json", {**config, **change})
        with pytest.raises(DfqError, match=message) as caught:
            load_draft(tmp_path)
        assert "\n" not in str(caught.value)
    write_json(tmp_path / "draft.json", config)
    file = tmp_path / "draft.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        load_draft(tmp_path)


def test_fingerprints_notice_tokenizer_and_template(reference: Path, tmp_path: Path) -> None:
    for file in reference.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    assert checkpoint_fingerprint(tmp_path) == checkpoint_fingerprint(reference)
    (tmp_path / "chat_template.jinja").unlink()
    assert checkpoint_fingerprint(tmp_path) != checkpoint_fingerprint(reference)


class Words:
    """A tokenizer of characters with a chat template that marks turns."""

    rewrites = False

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        text = f"#{len(messages)}" if self.rewrites else ""
        for message in messages:
            text += f"<{message['role'][0]}>{message['content']}."
        return text + ("<a>" if add_generation_prompt else "")

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


def test_answers_count_and_questions_do_not() -> None:
    ids, mask = answer_mask(Words(), CHAT, "here")
    assert "".join(map(chr, ids)) == "<u>hi.<a>yes.<u>and.<a>no."
    assert "".join(chr(token) for token, counts in zip(ids, mask) if counts) == "yes.no"
    rewriting = Words()
    rewriting.rewrites = True
    with pytest.raises(InputError, match="rewrites earlier turns"):
        answer_mask(rewriting, CHAT, "here")


def test_conversations_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, *CHAT[1:2]]} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held = load_corpora(str(file), Words(), 100, 100, 64, 0)
    assert len(train) + len(held) == 60
    assert len(held) > 0
    again = load_corpora(str(file), Words(), 100, 100, 64, 7)
    assert again[1].digest() == held.digest(), "the split depends on the conversation alone"
    for bad, message in (
        ('{"messages": []}', "must be a list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no answer"),
        ("{", "not JSON"),
        (json.dumps({"messages": CHAT, "images": ["x.png"]}), "holds images"),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]}), "other than text"),
        ('{"messages": [{"role": "assistant"}]}', "template refuses"),
    ):
        file.write_text(json.dumps(rows[0]) + "\n" + bad + "\n")
        with pytest.raises(DfqError, match=message):
            load_corpora(str(file), Words(), 9, 9, 64, 0)


def test_stored_features_are_the_running_ones(targets: Get, tmp_path: Path) -> None:
    from dfrot.draft.training.stored_features import save_corpus, save_index, save_shard

    source = online(targets("llama-kv4"))
    for side in ("train", "held_out"):
        corpus = source.corpus(side)
        save_corpus(tmp_path, side, corpus)
        for shard, index in enumerate(torch.split(torch.arange(len(corpus)), 3)):
            save_shard(tmp_path, side, shard, source.batch(side, index)[1])
    index = {
        "fingerprint": "x",
        "select": "sample",
        "aux_layers": [],
        "per_shard": 3,
        "tensors": ["last", "layer", "mid"],
    }
    save_index(tmp_path, index)
    stored = StoredFeatures(tmp_path)
    for side, rows in (("train", torch.tensor([7, 0, 4])), ("held_out", torch.tensor([1, 3]))):
        for ours, theirs in zip(vars(stored.batch(side, rows)[1]).values(), vars(source.batch(side, rows)[1]).values()):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
    stored.check("x", "sample", ())
    stored.check("x", "none", ())
    assert stored.batch("train", torch.tensor([1]))[1].mid is None, "a draft without an intermediate feature got one"
    stored = StoredFeatures(tmp_path)
    for arguments in (("y", "sample", ()), ("x", "token", ()), ("x", "none", (1, 2, 3))):
        with pytest.raises(MismatchError):
            stored.check(*arguments)
    shard = tmp_path / "train-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        StoredFeatures(tmp_path)


def test_options_are_checked() -> None:
    for bad in ({"epochs": 0}, {"batch": 0}, {"lr": -1.0}, {"ttt_steps": -1}):
        with pytest.raises(InputError):
            TrainSettings(**bad)
