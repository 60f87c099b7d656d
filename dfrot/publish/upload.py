"""Sending a folder to the hub through its client, and its refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.errors import DfqError, ResourceError
from dfrot.hub_download import silent_client
from dfrot.progress import Progress
from dfrot.publish.sent_files import IGNORED

AGAIN = "give the command again: what has arrived is not sent twice"


def upload(
    folder: Path, repository: str, private: bool, revision: str | None, message: str, progress: Progress
) -> dict[str, Any]:
    """Make the repository where it does not exist, and commit every file of `folder` to it.

    Returns {"url", "commit"}. Files that the hub has already are not sent again, so that an interrupted upload goes on
    where it stopped. Raises ResourceError in one line for what the hub or the network refuses."""
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError:
        raise ResourceError("the hub's client is not installed: pip install 'dfq[hub]'") from None
    api = HfApi()
    try:
        with silent_client():
            progress(f"upload {repository}", 0, 2)
            url = api.create_repo(repository, private=private or None, repo_type="model", exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            progress(f"upload {repository}", 1, 2)
            commit: Any = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                ignore_patterns=list(IGNORED),
            )
            progress(f"upload {repository}", 2, 2)
    except DfqError:
        raise
    except Exception as error:  # of the hub, the network, the client: many types, one meaning
        raise ResourceError(f"{repository}: {reason_of_refusal(error, repository)}", field="to") from None
    return {"url": str(url), "commit": str(commit.oid), "commit_url": str(commit.commit_url)}


def reason_of_refusal(error: Exception, repository: str) -> str:
    """What went wrong and what to do, in one line, for an exception of the hub's client."""
    from huggingface_hub import constants, errors

    owner = repository.partition("/")[0]
    if constants.HF_HUB_OFFLINE:
        return "cannot be reached (HF_HUB_OFFLINE is set); unset it"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "no token; set HF_TOKEN to a token that may write, or log in with `hf auth login`"
    status = getattr(getattr(error, "response", None), "status_code", None)
    match status:
        case 401:
            return "the hub does not know this token; set HF_TOKEN to a token that may write, or log in"
        case 402:
            return f"{owner} has no space left on the hub; free some, or publish under another name"
        case 403:
            return f"this token may not write to {owner}; take one with write access there"
        case 404:
            return (
                f"the hub does not show it to this token; check that {owner} exists and that the token may write there"
            )
        case 409:
            return f"somebody else changes it at this moment; {AGAIN}"
        case 413 | 422 | 400:
            return f"the hub refuses what was sent ({_first_line(error)})"
        case 429:
            return f"the hub asks for fewer requests; wait, then {AGAIN}"
        case int() if status >= 500:
            return f"the hub fails ({status}); {AGAIN}"
    return f"the upload stopped ({_first_line(error)}); {AGAIN}"


def _first_line(error: Exception) -> str:
    """What the hub says, or the client."""
    message = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]
