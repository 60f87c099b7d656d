"""The pre-commit hooks use the versions of constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_hooks_use_the_pinned_versions() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    wanted = [item for hook in repo["hooks"] for item in hook.get("additional_dependencies", ())]
    assert wanted
    for item in wanted:
        name, _, version = item.partition("==")
        assert pins[name] == version
