"""The native pass of an EAGLE-3 draft against its modules: any storage of weights, any instruction set, chain and tree.

That training and decoding agree is in test_identity.py, that greedy text is plain decoding's in tests/generation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.draft.models.build import build
from dfrot.draft.models.config import DraftConfig
from dfrot.draft.models.eagle3 import Eagle3Draft
from dfrot.draft.models.eagle3_state import Eagle3State
from dfrot.draft.models.native_pass import few_rows, unfit
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import DraftBlock, DraftPass, DraftShape, Slots
from tests.decoding import disturb_vectors, prepared

pytestmark = pytest.mark.skipif(not native.active(), reason="no native library")

EVEN, ODD = (64, 96, 4, 2, 16), (72, 88, 6, 3, 12)  # hidden, MLP, heads, heads of keys, values of a head


def random_draft(sizes: tuple[int, ...], quantized: str, dtype: torch.dtype) -> Eagle3Draft:
    """A random draft with a vocabulary of its own, whose norms are not trivial."""
    hidden, mlp, heads, kv_heads, dim = sizes
    torch.manual_seed(0)
    sizes = (hidden, hidden, mlp, heads, kv_heads, dim, 100)
    draft = build(DraftConfig("eagle3", *sizes, aux_layers=(1, 2, 3), draft_vocab_size=37))
    assert isinstance(draft, Eagle3Draft)
    disturb_vectors(draft)
    return prepared(draft, quantized, dtype)


@torch.inference_mode()
def outputs_of(draft: Eagle3Draft, natively: bool) -> Tensor:
    """Outputs of a prompt, of rounds with chains and trees behind it, of slots with gaps between them; a way back."""
    state = Eagle3State(draft, 100, natively)
    assert (state.native is not None) == natively
    generator, size = torch.Generator().manual_seed(1), draft.config.hidden_size
    e, f = (torch.randn(60, width, generator=generator).to(draft.norm.weight.dtype) for width in (size, 3 * size))
    outputs = [state.extend(e[:20], f[:19])]  # more rows than a call takes
    outputs += [state.extend(e[20:24], f[19:23]), state.grow(e[24:25], [-1]), state.grow(e[25:26], [0])]
    mark = state.mark()
    outputs += [state.extend(e[26:27], f[23:24]), state.grow(e[30:33], [-1, -1, -1])]
    outputs += [state.grow(e[33:36], [0, 0, 2]), state.grow(e[36:39], [3, 4, 5])]
    state.back(mark)
    outputs.append(state.extend(e[40:43], f[27:33], torch.tensor([25, 27, 29])))
    outputs.append(state.extend(e[27:28], f[33:34]))
    assert state.native_passes == (9 if natively else 0)
    return torch.cat(outputs).double()


@pytest.mark.parametrize("sizes", [EVEN, ODD])
@pytest.mark.parametrize("quantized", ["", "w8", "w4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_pass_equals_the_modules(sizes: tuple[int, ...], quantized: str, dtype: torch.dtype, isa: str) -> None:
    draft = random_draft(sizes, quantized, dtype)
    torch.use_deterministic_algorithms(True, warn_only=True)  # NaN in fresh memory
    try:
        ours, theirs = outputs_of(draft, True), outputs_of(draft, False)
    finally:
        torch.use_deterministic_algorithms(False)
    # 4-bit tiles take float32 rows as the sum of two bfloat16 (2^-17); the modules round to bfloat16 after every step
    assert (ours - theirs).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm()


@torch.inference_mode()
def test_bits_do_not_depend_on_instruction_set_threads_or_other_rows() -> None:
    draft, outputs, before, threads = random_draft(ODD, "w8", torch.bfloat16), [], native.isa(), torch.get_num_threads()
    for isa in native.available_isas():
        native.set_isa(isa)
        for count in (1, 3):
            torch.set_num_threads(count)
            outputs.append(outputs_of(draft, True))
    native.set_isa(before)
    torch.set_num_threads(threads)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    e, f = torch.randn(10, 72).bfloat16(), torch.randn(9, 216).bfloat16()
    alone, block = Eagle3State(draft, 30), Eagle3State(draft, 30)
    for row in range(10):
        last = alone.extend(e[row : row + 1], f[max(0, row - 1) : row])
    assert torch.equal(last, block.extend(e, f))


def test_few_rows_of_the_fusion_and_the_head() -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        draft = random_draft(ODD, "", dtype)
        for linear in (draft.fc, draft.lm_head):
            x = torch.randn(3, linear.in_features).to(dtype)
            exact = linear.weight.double() @ x.double().T
            with torch.no_grad():
                product = few_rows(linear, x)
            assert (product.double() - exact.T).norm() < tolerance * exact.norm()
    assert few_rows(draft.fc.requires_grad_(True), torch.randn(2, 216).bfloat16()).requires_grad


@torch.inference_mode()
def test_a_pass_without_the_stream_that_it_needs_is_refused() -> None:
    draft = random_draft(EVEN, "", torch.float32)
    assert unfit(draft) is None
    state = Eagle3State(draft, 10)
    slots = Slots(torch.zeros(1, 1, dtype=torch.long), 0, 0, None, 1, 0, 0, None, None)
    x, angles = torch.zeros(1, 64), draft.rotary.table(1)
    assert state.native is not None
    with pytest.raises(RuntimeError, match="limits"):
        state.native.run(x, None, state.table, angles, slots)
    with pytest.raises(ValueError, match="stream"):
        state.native.run(x, None, state.table, angles, slots, torch.zeros(2, 64))
    gain, weights = torch.ones(64), (torch.zeros(64, 64),) * 7
    crossed = DraftPass(
        DraftShape(torch.float32, 64, 4, 4, 16, 64, 1e-5),
        [DraftBlock(gain, gain, weights, True, side_norm=gain)],
        gain,
    )
    with pytest.raises(RuntimeError, match="limits"):
        crossed.run(x, None, state.table, angles, slots, x)
    with pytest.raises(ValueError, match=r"a bias \(63,\) beside a weight \(64, 64\)"):
        DraftPass(crossed.shape, [DraftBlock(gain, gain, weights, biases=(None,) * 6 + (torch.zeros(63),))], gain)
