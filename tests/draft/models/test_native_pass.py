"""The native pass of a DREAM draft against its modules: any storage of weights, any instruction set, chain and tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.dream import DreamDraft
from dfrot.draft.models.dream_state import DreamState
from dfrot.draft.models.native_pass import native_pass, unfit
from dfrot.draft.proposal_head import proposal_head
from dfrot.generation.target import Target
from dfrot.runtime.load import load_model
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import LINES, dense
from tests.decoding import disturb_vectors, prepared

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")

LAYERS = {"aux_layers": (1, 2, 3)}
EVEN, ODD = (64, 96, 4, 2, 16), (72, 88, 6, 3, 12)  # hidden, MLP, heads, heads of keys, values of a head


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """NaN in fresh memory, and the number of threads as it was."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def random_draft(sizes: tuple[int, ...], quantized: str, dtype: torch.dtype, **changes: object) -> DreamDraft:
    """A random draft whose norms, gates and null key are not trivial."""
    hidden, mlp, heads, kv_heads, dim = sizes
    torch.manual_seed(0)
    draft = build(DraftConfig("dream", hidden, hidden, mlp, heads, kv_heads, dim, 100, **changes))  # type: ignore[arg-type]
    assert isinstance(draft, DreamDraft)
    disturb_vectors(draft)
    if draft.cross.cross_attn is not None:
        draft.cross.cross_attn.null_v.data.normal_()
    return prepared(draft, quantized, dtype)


@torch.inference_mode()
def outputs_of(draft: DreamDraft, natively: bool) -> Tensor:
    """Outputs of a prompt, of rounds with chains and trees behind it, and of slots with gaps between them."""
    state = DreamState(draft, 100, natively)
    assert (state.native is not None) == natively
    generator, size = torch.Generator().manual_seed(1), draft.config.hidden_size
    widths = (size, draft.config.feature_size)
    e, f = (torch.randn(60, width, generator=generator).to(draft.norm.weight.dtype) for width in widths)
    outputs = [state.extend(e[:20], f[:19])]  # more rows than a call takes
    outputs += [state.extend(e[20:24], f[19:23]), state.grow(e[24:25], [-1]), state.grow(e[25:26], [0])]
    outputs += [state.extend(e[24:27], f[23:26]), state.grow(e[30:33], [-1, -1, -1])]
    outputs += [state.grow(e[33:36], [0, 0, 2]), state.grow(e[36:39], [3, 4, 5])]
    outputs.append(state.extend(e[40:43], f[26:31], torch.tensor([28, 29, 31])))
    outputs.append(state.extend(e[27:29], f[31:33]))
    assert state.native_passes == (9 if natively else 0)
    return torch.cat(outputs).double()


@pytest.mark.parametrize("sizes", [EVEN, ODD])
@pytest.mark.parametrize("quantized", ["", "w8", "w4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_pass_equals_the_modules(sizes: tuple[int, ...], quantized: str, dtype: torch.dtype, isa: str) -> None:
    draft = random_draft(sizes, quantized, dtype)
    ours, theirs = outputs_of(draft, True), outputs_of(draft, False)
    # 4-bit tiles take float32 rows as the sum of two bfloat16 (2^-17); the modules round to bfloat16 after every step
    assert (ours - theirs).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm()


@pytest.mark.parametrize(
    "changes",
    [
        {"cross": False},
        {"distance": False},
        {"num_final_layers": 0},
        {"num_final_layers": 2},
        LAYERS,
        {**LAYERS, "cross": False},
        {**LAYERS, "newest": False},
    ],
)
def test_every_variant_of_the_draft(changes: dict[str, object], isa: str) -> None:
    draft = random_draft(ODD, "", torch.float32, **changes)
    ours, theirs = outputs_of(draft, True), outputs_of(draft, False)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("quantized", ["", "w8"])
@pytest.mark.parametrize("changes", [{}, LAYERS])
def test_instruction_sets_and_threads_agree_to_the_last_bit(quantized: str, changes: dict[str, object]) -> None:
    draft, outputs = random_draft(ODD, quantized, torch.bfloat16, **changes), []
    before = native.isa()
    for isa in native.available_isas():
        native.set_isa(isa)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(outputs_of(draft, True))
    native.set_isa(before)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@torch.inference_mode()
def test_rows_have_the_bits_that_they_have_alone(isa: str) -> None:
    """Slots of one call are those of calls one by one, so that a draft token does not depend on those beside it."""
    draft = random_draft(EVEN, "", torch.float32)
    e, f = torch.randn(10, 64), torch.randn(10, 64)
    alone, block = DreamState(draft, 30), DreamState(draft, 30)
    for row in range(10):
        last = alone.extend(e[row : row + 1], f[row : row + 1])
    assert torch.equal(last, block.extend(e, f))
    children = torch.randn(4, 64)
    together = block.grow(children, [-1] * 4)
    for row in range(4):
        assert torch.equal(together[row], alone.grow(children[row : row + 1], [-1])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (37, 50), (64, 96), (130, 33)])
def test_dense_products(n: int, k: int, dtype: torch.dtype, isa: str) -> None:
    """Of few rows and of many, and every row as if it were alone."""
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(n, k, generator=generator).to(dtype)
    for rows in (1, 2, 7, 16, 21):
        x = torch.randn(rows, k, generator=generator).to(dtype)
        y, exact = dense(x, weight), x.double() @ weight.double().T
        assert (y.double() - exact).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * exact.norm()
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(y, torch.cat([dense(row[None], weight) for row in x]))
    assert dense(torch.empty(2, 0, k, dtype=dtype), weight).shape == (2, 0, n)
    with pytest.raises(ValueError, match="dense"):
        dense(torch.zeros(1, k + 1, dtype=dtype), weight)


@torch.inference_mode()
def test_four_bit_drafts_propose_from_a_four_bit_head(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "packed", preset("tiny"), "w4a4kv4", 0, keep_head=True)
    target = Target(load_model(folder))
    features = torch.randn(3, target.config.hidden_size, dtype=torch.bfloat16)
    exact = target.head(features).double()
    assert (target.logits_rows(features).double() - exact).norm() < 4e-3 * exact.norm()
    assert torch.equal(target.logits_rows(features)[:1], target.logits_rows(features[:1]))
    assert not target.rounded_heads
    assert torch.equal(
        proposal_head(target, random_draft(EVEN, "w8", torch.float32))(features), target.logits_rows(features)
    )
    proposed = proposal_head(target, random_draft(EVEN, "w4", torch.float32))(features).double()
    assert target.rounded_heads["w4"].plan.w_bits == 4
    assert 1e-3 * exact.norm() < (proposed - exact).norm() < 0.2 * exact.norm()
    packed = Target(load_model(random_checkpoint(tmp_path / "all", preset("tiny"), "w4a4kv4", 0)))
    assert proposal_head(packed, random_draft(EVEN, "w4", torch.float32)) == packed.logits_rows, (
        "its head is in 4 bits already"
    )


@torch.inference_mode()
def test_hooks_of_a_head_are_called_row_by_row(tmp_path: Path) -> None:
    target = Target(load_model(random_checkpoint(tmp_path / "packed", preset("tiny"), "w4a4kv4", 0, keep_head=True)))
    features, inputs = torch.randn(1, 4, target.config.hidden_size, dtype=torch.bfloat16), []
    handle = target.head_module.register_forward_hook(lambda _, arguments, output: inputs.append(arguments[0].shape))
    together = target.logits_rows(features)
    assert len(inputs) == 4
    assert torch.equal(together[:, 2], target.logits_rows(features[:, 2:3])[:, 0])
    handle.remove()
    assert torch.allclose(target.logits_rows(features), together, atol=0.05)


def test_changed_weights_are_read_again() -> None:
    draft = random_draft(EVEN, "", torch.float32)
    first = outputs_of(draft, True)
    draft.cross.cross_attn_attn_gate.data.mul_(2)
    draft.norm.weight.data.mul_(2)
    ours, theirs = outputs_of(draft, True), outputs_of(draft, False)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert not torch.allclose(ours, first)


@torch.inference_mode()
@pytest.mark.parametrize("natively", [True, False])
def test_going_back_to_a_mark(natively: bool) -> None:
    state, e, f = (
        DreamState(random_draft(EVEN, "", torch.float32), 20, natively),
        torch.randn(9, 64),
        torch.randn(9, 64),
    )
    state.extend(e[:5], f[:4])
    mark, outputs = state.mark(), []
    for _ in range(2):
        outputs.append(torch.cat([state.extend(e[5:6], f[4:5]), state.grow(e[6:8], [-1, -1]), state.grow(e[8:], [1])]))
        state.back(mark)
    assert torch.equal(*outputs)


def test_positions_beyond_the_rotary_table_are_refused() -> None:
    state, rows = DreamState(random_draft(EVEN, "", torch.float32, max_position_embeddings=6), 20), torch.randn(8, 64)
    with torch.inference_mode():
        state.extend(rows[:6], rows[:6])
        with pytest.raises(IndexError, match="made for 6"):
            state.grow(rows[:1], [-1])


def test_which_drafts_are_served() -> None:
    assert unfit(random_draft(EVEN, "", torch.float32)) is None
    assert "float64" in str(unfit(random_draft(EVEN, "", torch.float64)))
    narrow = build(DraftConfig("dream", 64, 128, 96, 4, 2, 16, 100))
    assert isinstance(narrow, DreamDraft)
    assert "narrower" in str(unfit(narrow))
    learning = random_draft(EVEN, "", torch.float32).requires_grad_(True)
    assert native_pass(learning) is None, "its gradients go through the modules"
    with torch.no_grad():
        assert native_pass(learning) is not None


def test_too_many_rows_are_refused() -> None:
    draft = random_draft(EVEN, "", torch.float32)
    served, state = native_pass(draft), DreamState(draft, 40)
    assert served is not None
    rows = torch.zeros(LINES + 1, 64)
    with pytest.raises(ValueError, match="rows are served"):
        served.run(rows, None, state.table, draft.rotary.table(1), None)  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="limits"):
        DreamState(draft, 3).extend(rows[:4], rows[:4])  # more than its buffers hold
