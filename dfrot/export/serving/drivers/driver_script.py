"""What the scripts beside this one share: from the request to the answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any


def answer_request(run: Callable[[dict[str, Any]], dict[str, Any]], packages: Iterable[str]) -> None:
    """Read the JSON file REQUEST, the first argument, and write what `run` makes of it, with the versions of those
    `packages` that are installed, to the JSON file ANSWER, the second."""
    request_file, answer_file = sys.argv[1:]
    answer = run(json.loads(Path(request_file).read_text(encoding="utf-8")))
    Path(answer_file).write_text(json.dumps({"versions": installed(packages), **answer}), encoding="utf-8")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of what decides the result, as far as it is installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
