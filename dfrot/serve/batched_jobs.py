"""Jobs that share the steps of a batch: prompts are read a chunk at a time beside the steps of everybody else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dfrot.generation.batch import Batch, BatchedSequence
from dfrot.serve.job import Job, Outcome, job_outcome


@dataclass
class _Row:
    job: Job
    sequence: BatchedSequence

    @property
    def positions(self) -> int:
        return positions_of(self.job)


def positions_of(job: Job) -> int:
    """Positions that a job may fill: its prompt and all its new tokens."""
    return len(job.generation.request.prompt) + job.generation.stop.max_new_tokens


class BatchedJobs:
    """The jobs of one batch, in the order of their arrival."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, job: Job) -> None:
        """Serve a job from the next step on. There must be room for it."""
        sequence = self.batch.start(job.generation.request.prompt, positions_of(job))
        job.shared = sequence.shared
        self._rows.append(_Row(job, sequence))

    def step(self) -> list[Outcome]:
        """A chunk of the first prompt that is not read yet, and a token of every text. Returns the jobs that ended."""
        ended = [Outcome(row.job, outcome) for row in self._rows if (outcome := row.job.interruption())]
        self._remove(ended)
        texts = [row for row in self._rows if row.sequence.is_read]
        if reading := next((row for row in self._rows if not row.sequence.is_read), None):
            ended += self._read(reading)
        if texts:
            ended += self._decode(texts)
        return ended

    def clear(self) -> list[Job]:
        """End all jobs; returns them."""
        jobs = [row.job for row in self._rows]
        self._remove([Outcome(job, "cancelled") for job in jobs])
        return jobs

    def _read(self, row: _Row) -> list[Outcome]:
        with job_outcome(row.job) as result:
            logits = self.batch.read(row.sequence)
            if logits is not None:
                self._accept(row.job, logits)
        return self._ended([result])

    def _decode(self, rows: list[_Row]) -> list[Outcome]:
        tokens = [row.job.generation.out.tokens[-1] for row in rows]
        try:
            logits = self.batch.step([row.sequence for row in rows], tokens)
        except Exception as error:  # nobody's request is to blame
            return self._ended([Outcome(row.job, row.job.fail(error)) for row in rows])
        results = []
        for row, line in zip(rows, logits):
            with job_outcome(row.job) as result:
                self._accept(row.job, line)
            results.append(result)
        return self._ended(results)

    def _accept(self, job: Job, logits: Tensor) -> None:
        piece = job.generation.accept(logits)
        job.has_text(piece)

    def _ended(self, results: list[Outcome]) -> list[Outcome]:
        ended = [result for result in results if result.how is not None]
        self._remove(ended)
        return ended

    def _remove(self, ended: list[Outcome]) -> None:
        gone = {id(result.job) for result in ended}
        for row in self._rows:
            if id(row.job) in gone:
                self.batch.end(row.sequence)
        self._rows = [row for row in self._rows if id(row.job) not in gone]
