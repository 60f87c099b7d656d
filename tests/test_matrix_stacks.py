"""Stacks of matrices: right in every thread, and singular ones known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from dfrot.matrix_stacks import inverses, solutions


def test_large_matrices_in_a_thread_of_their_own() -> None:
    """Where torch.linalg.inv of the whole stack fails ("Parameter 6 was incorrect on entry to DLASWP")."""
    stack = torch.randn(2, 3, 256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = stack[0, :, :, 0]

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        torch.set_num_threads(2)  # of this thread
        return inverses(stack), solutions(stack[0], wanted)

    with ThreadPoolExecutor(1) as pool:
        inverse, solution = pool.submit(work).result()
    eye = torch.eye(256, dtype=torch.float64).expand_as(stack)
    torch.testing.assert_close(inverse @ stack, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close((stack[0] @ solution[..., None])[..., 0], wanted, rtol=0, atol=1e-9)


def test_singular_matrices_give_nan() -> None:
    stack = torch.stack([torch.eye(3), torch.zeros(3, 3), 2 * torch.eye(3)]).double()
    inverse, solution = inverses(stack), solutions(stack, torch.ones(3, 3).double())
    assert inverse.isnan().all(dim=(1, 2)).tolist() == solution.isnan().all(dim=1).tolist() == [False, True, False]
    torch.testing.assert_close(inverse[2], torch.eye(3).double() / 2)
