"""Settings of `dfq publish`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.settings import check, setting


@dataclass(frozen=True)
class PublishSettings:
    """Where a folder goes on the hub, and what its card says."""

    to: str = setting(metavar="ORG/NAME", help="The repository on the hub; it is made where it does not exist.")
    base: str | None = setting(
        None,
        metavar="ORG/NAME",
        help="The model that this one was made from, as hub id or alias; of a draft its target. Default: what the "
        "folder's record or card names.",
    )
    base_folder: Path | None = setting(
        None,
        metavar="PATH",
        help="A local copy of the base model, to compare tokenizer and other files with. Default: the hub's cache, "
        "else its small files are fetched.",
    )
    license: str | None = setting(
        None, metavar="ID", help="Licence by the hub's identifier, such as apache-2.0. Default: that of the base model."
    )
    results: tuple[Path, ...] = setting(
        (),
        metavar="FILE",
        help="Results for the card, as dfq eval ppl, eval tasks (`out`) or the stage.json of export with `check` have "
        "them, and reports of draft export with `check`; repeatable. What a run of a recipe measured, and reports in a "
        "draft's folder, are taken by themselves.",
    )
    private: bool = setting(False, help="Make the repository private, if it is made.")
    revision: str | None = setting(
        None, metavar="BRANCH", help="The branch to commit to; it is made where it does not exist. Default: main."
    )
    force: bool = setting(False, help="Publish in spite of failed checks, access tokens in files excepted.")

    def __post_init__(self) -> None:
        check(self)
