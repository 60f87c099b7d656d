"""A run that stops and goes on: turns, values, errors, and its end."""

from __future__ import annotations

import threading

import pytest
import torch

from dfrot.calib.paused_run import PausedRun


def test_runs_take_turns() -> None:
    events: list[str] = []

    def run(name: str, stops: int) -> PausedRun:
        def job() -> None:
            for number in range(stops):
                events.append(f"{name}{number}")
                paused.pause(f"{name} waits")
            events.append(f"{name} ends")

        paused = PausedRun(job)
        return paused

    with run("a", 2) as a, run("b", 1) as b:
        assert [a.step(), b.step(), a.step()] == ["a waits", "b waits", "a waits"]
        assert [b.step(), a.step()] == [None, None]
    assert events == ["a0", "b0", "a1", "b ends", "a ends"]


def test_errors_reach_the_caller() -> None:
    def job() -> None:
        paused.pause(1)
        raise KeyboardInterrupt

    with PausedRun(job) as paused:
        assert paused.step() == 1
        with pytest.raises(KeyboardInterrupt):
            paused.step()


def test_a_run_that_waits_ends_with_its_context() -> None:
    before, ended = threading.active_count(), []

    def job() -> None:
        try:
            paused.pause(1)
        finally:
            ended.append(True)

    with PausedRun(job) as paused, PausedRun(job):
        paused.step()
        assert not ended
    assert ended == [True]
    assert threading.active_count() == before


def test_a_run_computes_as_its_caller_does() -> None:
    def job() -> None:
        paused.pause((torch.get_num_threads(), (torch.ones(2, requires_grad=True) * 2).requires_grad))

    with PausedRun(job) as paused:
        assert paused.step() == (torch.get_num_threads(), False)
