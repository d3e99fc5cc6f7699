"""A stage's outputs replace the earlier ones together: all or none, after an error or a kill at any moment."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import lock, write_atomically
from pipeline.core.paths import METRICS, Paths
from pipeline.core.publication import published_folder, recover

CALLS = ("rename", "replace", "open", "fsync", "mkdir", "unlink")
_NOBODY = 65534
OUTPUTS = {
    "a folder": ("artifacts/tokens", ()),
    "a folder and its metrics": ("artifacts/checkpoint", ("train.json", "history.tsv")),
}


def publish(paths: Paths, output: str, metrics: tuple[str, ...], content: str) -> None:
    with published_folder(paths.root / output, paths) as folder:
        write_atomically(folder / "deep" / "data.bin", content)
        for name in metrics:
            write_atomically(folder / METRICS / name, content)


def contents(paths: Paths) -> dict[str, str]:
    """Every file of the project that a person sees, and what it holds."""
    return {
        path.relative_to(paths.root).as_posix(): path.read_text()
        for path in sorted(paths.root.rglob("*"))
        if path.is_file() and path.name != ".publishing.lock"
    }


def expected(output: str, metrics: tuple[str, ...], content: str) -> dict[str, str]:
    names = [f"{output}/deep/data.bin", *(f"{output}/metrics/{name}" for name in metrics)]
    return dict.fromkeys([*names, *(f"metrics/{name}" for name in metrics)], content)


@contextmanager
def at_call(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Has the `number`-th call of the file system act first; yields the calls that were made."""
    made: list[str] = []

    def call(name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        made.append(name)
        if len(made) == number:
            act()
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, partial(call, name, getattr(os, name)))
        yield made


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Runs `work` in a child that ends at its `number`-th call, as by SIGKILL; False if it made fewer."""
    child = os.fork()
    if child == 0:
        with at_call(number, lambda: os._exit(9)):
            work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: None
    )  # no test pulls the plug, and it takes most of the time
    return Paths(tmp_path)


@pytest.mark.parametrize(
    "before",
    [pytest.param(True, id="over an earlier one"), pytest.param(False, id="the first one", marks=pytest.mark.long)],
)
@pytest.mark.parametrize(
    ("output", "metrics"),
    [pytest.param(*each, id=name, marks=[pytest.mark.long] * (not each[1])) for name, each in OUTPUTS.items()],
)
def test_after_a_kill_at_any_moment_all_is_old_or_all_is_new(
    paths: Paths, output: str, metrics: tuple[str, ...], before: bool
) -> None:
    old = expected(output, metrics, "old") if before else {}
    seen = []
    for number in count(1):
        if before:
            publish(paths, output, metrics, "old")
        if not killed_at(number, lambda: publish(paths, output, metrics, "new")):
            break
        again = 0
        while (paths.root / "artifacts" / ".publishing.json").exists():
            if not killed_at(again := again + 1, lambda: recover(paths)):  # recovery may be killed, too
                break
        recover(paths)
        assert contents(paths) in (old, expected(output, metrics, "new")), number
        seen.append(contents(paths) == old)
        for name in contents(paths):
            (paths.root / name).unlink()
    assert set(seen) == {True, False}
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize(("output", "metrics"), OUTPUTS.values(), ids=OUTPUTS)
def test_after_an_error_at_any_moment_all_is_as_before(
    paths: Paths, output: str, metrics: tuple[str, ...], code: int
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    failures = 0
    for number in count(1):
        publish(paths, output, metrics, "old")
        try:
            with at_call(number, fail) as made:
                publish(paths, output, metrics, "new")
        except (OSError, PipelineError):
            failures += 1
            assert contents(paths) == expected(output, metrics, "old"), (number, made)
        else:
            recover(paths)  # where the old outputs could not be removed
            assert contents(paths) == expected(output, metrics, "new"), (number, made)
        if len(made) < number:
            break
    assert failures > 20


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Root may write anywhere, so nobody owns `folder` and does what stands inside."""
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("folder", ["artifacts", "metrics"])
def test_a_folder_that_cannot_be_written_fails_before_anything_is_replaced(folder: str) -> None:
    output, metrics = OUTPUTS["a folder and its metrics"]
    with tempfile.TemporaryDirectory() as root:  # pytest's folders are closed to nobody
        paths = Paths(Path(root))
        publish(paths, output, metrics, "old")
        with unprivileged(paths.root):
            (paths.root / folder).chmod(0o555)
            with pytest.raises(OSError, match=folder):
                publish(paths, output, metrics, "new")
            (paths.root / folder).chmod(0o755)
        assert contents(paths) == expected(output, metrics, "old")


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_stay(paths: Paths) -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    names = [".params.yaml.partial-{}", "metrics/.train.json.partial-{}", "docs/.params.md.partial-{}"]
    names += ["artifacts/.tokens.old-{}", ".reports.partial-{}"]
    leftovers = [paths.root / name.format(child) for name in names]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    recover(paths)
    assert all(path.exists() for path in leftovers)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    recover(paths)
    assert not any(path.exists() for path in leftovers)


def test_an_old_output_that_cannot_be_removed_is_named(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(paths, "artifacts/tokens", (), "old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
        publish(paths, "artifacts/tokens", (), "new")
    (old,) = (paths.root / "artifacts").glob(".tokens.old-*")
    assert f"artifacts/{old.name}" in capsys.readouterr().out
    assert contents(paths)["artifacts/tokens/deep/data.bin"] == "new"
    recover(paths)
    assert not old.exists()


def test_a_link_in_the_place_of_an_output_is_replaced_and_never_written_through(paths: Paths) -> None:
    output, metrics = OUTPUTS["a folder and its metrics"]
    cache = paths.root / "cache"
    (cache / "folder").mkdir(parents=True)
    (cache / "file").write_text("cached")
    paths.metrics.mkdir()
    paths.checkpoint.parent.mkdir()
    paths.checkpoint.symlink_to(cache / "folder")
    (paths.metrics / "train.json").hardlink_to(cache / "file")
    (paths.metrics / "history.tsv").symlink_to(cache / "file")
    publish(paths, output, metrics, "new")
    assert contents(paths) == expected(output, metrics, "new") | {"cache/file": "cached"}
    assert not list((cache / "folder").iterdir())


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}', '{"pid": 1, "targets": ["/etc/x"]}',
                                  '{"pid": 1, "targets": ["../x"]}', '{"pid": "a", "targets": []}'])  # fmt: skip
def test_a_damaged_journal_is_named(paths: Paths, text: str) -> None:
    journal = paths.root / "artifacts" / ".publishing.json"
    journal.parent.mkdir()
    journal.write_text(text)
    with pytest.raises(PipelineError, match=r"\.publishing\.json"):
        recover(paths)


def test_who_publishes_waits_for_another_process(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.core.publication._SECONDS_TO_PUBLISH", 0.1)
    with lock(paths.root / "artifacts" / ".publishing.lock", "it"), pytest.raises(PipelineError) as raised:
        publish(paths, "artifacts/tokens", (), "new")
    assert str(os.getpid()) in str(raised.value)
    assert contents(paths) == {}
