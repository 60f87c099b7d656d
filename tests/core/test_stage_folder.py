"""Stage folders: what a run leaves, resumes, refuses and publishes."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from dfrot.errors import ExistsError, GateError, InputError, MismatchError, ResourceError
from dfrot.stage_folder import JOURNAL, LOCK, Stage, open_stage, read_record, refuse_inputs


def fail(out: Path, error: BaseException, units: int = 1, discard: bool = False, overwrite: bool = False) -> None:
    """A run that finishes some units, then stops with `error`."""
    with open_stage(out, "demo", {"a": 1}, overwrite=overwrite) as stage:
        for n in range(units):
            (stage.folder / f"unit{n}").write_text(str(n))
            stage.mark(f"unit{n}", {"n": n})
        if discard:
            stage.discard()
        raise error


def crash(out: Path) -> None:
    """A run that dies in the middle."""
    with pytest.raises(KeyboardInterrupt):
        fail(out, KeyboardInterrupt(), units=2)


def finish(out: Path, request: dict[str, int] | None = None, **options: bool) -> list[str]:
    """Runs what is left; returns the units that had to be done."""
    worked = []
    with open_stage(out, "demo", request or {"a": 1}, **options) as stage:
        if stage.finished:
            return []
        for n in range(4):
            if not stage.done(f"unit{n}"):
                worked.append(f"unit{n}")
                (stage.folder / f"unit{n}").write_text(str(n))
                stage.mark(f"unit{n}", {"n": n})
        stage.publish({"result": [stage.recall(f"unit{n}")["n"] for n in range(4)]})
    return worked


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_publish_leaves_only_the_result(tmp_path: Path) -> None:
    assert finish(tmp_path / "out") == ["unit0", "unit1", "unit2", "unit3"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(contents(tmp_path / "out")) == {"unit0", "unit1", "unit2", "unit3", "stage.json"}
    record = read_record(tmp_path / "out", "demo")
    assert record["result"] == [0, 1, 2, 3]
    assert record["request"] == {"a": 1}
    assert "torch" in record["versions"]


def test_an_interrupted_run_continues_and_ends_alike(tmp_path: Path) -> None:
    finish(tmp_path / "straight")
    crash(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert finish(tmp_path / "out") == ["unit2", "unit3"]
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_a_torn_journal_line_was_never_promised(tmp_path: Path) -> None:
    crash(tmp_path / "out")
    with (tmp_path / ".out.partial" / JOURNAL).open("a") as handle:
        handle.write('{"unit": "unit2", "va')
    assert finish(tmp_path / "out") == ["unit2", "unit3"]


def test_leftovers_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    finish(tmp_path / "straight")
    crash(tmp_path / "out")
    (tmp_path / ".out.partial" / ".config.json.x7f3").write_text("half")
    finish(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_no_resume_starts_over(tmp_path: Path) -> None:
    crash(tmp_path / "out")
    (tmp_path / ".out.partial" / "stray").write_text("x")
    assert len(finish(tmp_path / "out", resume=False)) == 4
    assert "stray" not in contents(tmp_path / "out")


def test_another_request_starts_over_unless_resume_was_demanded(tmp_path: Path) -> None:
    crash(tmp_path / "out")
    with pytest.raises(MismatchError, match="interrupted run of another request"):
        finish(tmp_path / "out", {"a": 2}, resume=True)
    assert len(finish(tmp_path / "out", {"a": 2})) == 4


def test_killed_between_record_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(tmp_path / "straight")

    def killed(self: Stage) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "_rename", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "out")
    monkeypatch.undo()
    assert finish(tmp_path / "out") == []
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_an_existing_output_is_neither_touched_nor_mixed(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ExistsError, match="already exists; choose another `out`, or replace it with `overwrite`"):
        finish(tmp_path / "out")
    with pytest.raises(ExistsError):
        finish(tmp_path / "out", {"a": 2}, resume=True)
    assert contents(tmp_path / "out") == before
    assert finish(tmp_path / "out", resume=True) == []
    assert len(finish(tmp_path / "out", {"a": 2}, overwrite=True)) == 4
    assert read_record(tmp_path / "out", "demo")["request"] == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_keeps_the_old_result_until_the_new_one_is_whole(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "out", KeyboardInterrupt(), overwrite=True)
    assert contents(tmp_path / "out") == before


def test_overwrite_replaces_only_what_dfq_wrote(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, reason in (
        ("folder", "did not write it"),
        ("file", "is a file"),
        ("link", "is a symbolic link"),
        ("dangling", "is a symbolic link"),
    ):
        with pytest.raises(ExistsError, match=reason):
            finish(tmp_path / name, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "folder", "link"]
    assert contents(tmp_path / "folder") == {"thesis.tex": b"mine"}
    (tmp_path / "empty").mkdir()
    assert len(finish(tmp_path / "empty", overwrite=True)) == 4


def test_an_output_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "models" / "one").mkdir(parents=True)
    refuse_inputs(tmp_path / "models" / "one" / "inside", tmp_path / "models" / "one", None)
    with pytest.raises(InputError, match="is an input of this command"):
        refuse_inputs(tmp_path / "models" / "." / "one", tmp_path / "models" / "one")
    with pytest.raises(InputError, match=r"models: holds the input .*one"):
        refuse_inputs(tmp_path / "models", tmp_path / "models" / "one")


def test_a_name_that_no_folder_can_have(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot be used \(File name too long\)"):
        finish(tmp_path / ("x" * 300))


def test_a_refusal_before_work_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        fail(tmp_path / "out", InputError("no"), units=0)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_after_work_keeps_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        fail(tmp_path / "out", InputError("no"))
    assert finish(tmp_path / "out") == ["unit1", "unit2", "unit3"]


def test_discarded_work_is_gone(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        fail(tmp_path / "out", GateError("wrong"), discard=True)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    crash(tmp_path / "out")
    with (tmp_path / ".out.partial" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ExistsError, match="another dfq process"):
            finish(tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "message"), [(28, "no space left on the disk"), (27, "ulimit -f"), (122, "within the disk quota")]
)
def test_a_full_disk_is_reported_in_one_line_and_resumes(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        fail(tmp_path / "out", OSError(number, "as the system says it"))
    assert finish(tmp_path / "out") == ["unit1", "unit2", "unit3"]


def test_an_output_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot be created"):
        finish(tmp_path / "file" / "out")


def test_record_of_another_stage(tmp_path: Path) -> None:
    finish(tmp_path / "out")
    with pytest.raises(MismatchError, match="is the result of demo, not of dfq rotate"):
        read_record(tmp_path / "out", "rotate")
    with pytest.raises(InputError, match="file not found"):
        read_record(tmp_path, "rotate")
