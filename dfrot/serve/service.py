"""What the routes share: the engine, its scheduler, limits, metrics, and the way from a request to a job."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from dfrot.data.images import decode_image
from dfrot.errors import DfqError
from dfrot.generation.batch import Batch
from dfrot.generation.engine import Engine, TextRequest
from dfrot.serve.api import ApiRequest
from dfrot.serve.body import BodyMemory
from dfrot.serve.errors import ApiError, api_error, bad_request
from dfrot.serve.job import Event, Job
from dfrot.serve.metrics import Metrics, resident
from dfrot.serve.scheduler import Scheduler
from dfrot.serve.settings import ServeSettings
from dfrot.vision.image_inputs import ImageInputs

Report = Callable[[dict[str, Any]], None]
MEBIBYTE = 1 << 20
BODIES = 8  # of the largest size that are held at a time
SEED_BITS = 62  # of random seeds; torch takes 63 bits without a sign


class Service:
    """One served model."""

    def __init__(self, engine: Engine, settings: ServeSettings, report: Report = lambda line: None) -> None:
        """report: called with a summary of every generation."""
        self.engine, self.settings, self.report = engine, settings, report
        self.metrics = Metrics()
        self.bodies = BodyMemory(BODIES * settings.max_body)
        self.batch = Batch(
            engine.target, settings.prompt_chunk, settings.kv_memory * MEBIBYTE, settings.prefix_memory * MEBIBYTE
        )
        self.scheduler = Scheduler(engine, settings.parallel, settings.queue, self._finished, self.batch)
        self._encoding = threading.Lock()  # tokenizers are not thread-safe
        self.run_id = secrets.token_hex(4)  # makes the ids of this run's responses unique
        self.started = int(time.time())

    @property
    def batching(self) -> str:
        """How requests share the computing thread."""
        if self.batch.unfit is not None:
            return f"none, requests take turns: {self.batch.unfit}"
        return f"up to {self.settings.parallel} requests in a step, prompts in chunks of {self.batch.chunk}"

    @property
    def gauges(self) -> dict[str, float]:
        """What is in use now, by the names of the metrics."""
        running, waiting = self.scheduler.counts
        batch = self.batch
        return {
            "dfq_requests_running": float(running),
            "dfq_requests_waiting": float(waiting),
            "dfq_resident_bytes": float(resident()),
            "dfq_batching": float(batch.unfit is None),
            "dfq_batch_steps": float(batch.steps),
            "dfq_batch_rows": float(batch.rows),
            "dfq_cache_bytes": float(batch.reserved),
            "dfq_prefix_bytes": float(batch.prefixes.bytes),
        }

    def _finished(self, job: Job, outcome: str) -> None:
        prompt, new = job.generation.usage
        now, out = time.monotonic(), job.generation.out
        self.metrics.add("dfq_generations_total", outcome=outcome)
        self.metrics.add("dfq_prompt_tokens_total", prompt if job.first is not None else 0)
        self.metrics.add("dfq_shared_prompt_tokens_total", job.shared)
        self.metrics.add("dfq_generated_tokens_total", new)
        if out.accepted:
            self.metrics.add("dfq_draft_rounds_total", out.rounds)
            self.metrics.add("dfq_draft_accepted_total", sum(out.accepted))
        if job.first is not None:
            self.metrics.observe("dfq_first_token_seconds", job.first - job.created)
        self.metrics.observe("dfq_request_seconds", now - job.created)
        seconds = now - job.created
        self.report({"job": job.number, "outcome": outcome, "prompt": prompt, "new": new, "seconds": seconds})

    async def submit(self, call: ApiRequest, emit: Callable[[int], Callable[[Event], None]]) -> list[Job]:
        """Tokenize (in a thread) and queue one job per choice.

        emit: from the number of a choice to its `Job`'s. Raises ApiError for a request that cannot be served."""
        settings = self.settings
        if call.model != settings.name:
            raise self.unknown_model(call.model)
        if call.max_tokens is not None and call.max_tokens > settings.max_tokens:
            raise bad_request(
                f"max_tokens: {call.max_tokens} is above this server's limit of {settings.max_tokens}", "max_tokens"
            )
        if call.choices > (room := settings.parallel + settings.queue):
            raise bad_request(f"n: {call.choices} answers; this server takes {room} at a time", "n")
        ids, images = await run_in_threadpool(self._encode, call)
        max_new_tokens = call.max_tokens or max(1, min(settings.max_tokens, self.engine.context - len(ids)))
        seed = secrets.randbits(SEED_BITS) if call.seed is None else call.seed % (1 << 63)
        sampling = call.sampling(len(ids), self.engine.target.vocab_size)
        jobs = list[Job]()
        try:
            for number in range(call.choices):
                request = TextRequest(
                    ids,
                    max_new_tokens,
                    call.stops,
                    sampling,
                    (seed + number) % (1 << 63),
                    call.ignore_eos,
                    call.stop_tokens,
                    call.logprobs,
                    images,
                    drafted=sampling.greedy or call.seed is None,
                )
                jobs.append(self.scheduler.submit(request, emit(number), settings.timeout))
        except ApiError:
            for job in jobs:
                job.cancel()
            raise
        return jobs

    def _encode(self, call: ApiRequest) -> tuple[tuple[int, ...], ImageInputs | None]:
        """Token ids and images of a request's prompt."""
        if call.images and not self.engine.takes_images:
            raise bad_request("messages: this model takes no images; leave them out", "messages", "unsupported_content")
        try:
            with self._encoding:
                if call.images:
                    if call.tools or call.template_options:
                        raise bad_request("tools and chat_template_kwargs are not supported beside images", "messages")
                    pictures = [decode_image(data, f"image {number}") for number, data in enumerate(call.images)]
                    return self.engine.encode_multimodal(call.prompt, pictures)
                if call.kind == "chat":
                    return self.engine.encode_chat(call.prompt, call.tools, call.template_options), None
                return self.engine.encode(call.prompt) if isinstance(call.prompt, str) else call.prompt, None
        except DfqError as error:
            raise api_error(error) from None

    def unknown_model(self, name: str) -> ApiError:
        """The error for a model that is not served."""
        return ApiError(404, f"model {name!r}: is not here; use {self.settings.name!r}", "model", "model_not_found")

    def require_key(self, request: Request) -> None:
        """Raise ApiError 401 unless the request carries the API key, where one is set."""
        if self.settings.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode(), self.settings.api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
