"""runs and clean: list and delete the training runs that have checkpoints, and the shards of tokenize."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.console import aligned
from pipeline.core.errors import PipelineError
from pipeline.core.files import format_bytes
from pipeline.core.params_diff import changed, effective, flatten, shown
from pipeline.core.paths import TOKEN_STORE
from pipeline.tokenize.store import folder_size, remove_settings, settings_folders
from pipeline.train.checkpoint_store import SavedRun, running_process, saved_runs


def require_project(root: Path) -> None:
    """Raises PipelineError unless `root`, a .resume, is in a project's folder."""
    if not (root.parent / "params.yaml").is_file():
        raise PipelineError(f"{root.parent / 'params.yaml'} is missing: run this in the project's folder")


def table(root: Path) -> Iterator[str]:
    """Yields a header and one line per run below `root`, the most recently saved first; then one about tokenize."""
    yield from _runs(root)
    if settings_folders(root / TOKEN_STORE):
        yield f"{TOKEN_STORE}: {format_bytes(folder_size(root / TOKEN_STORE))} of shards that tokenize has made"


def _runs(root: Path) -> Iterator[str]:
    runs = saved_runs(root)
    if not runs:
        yield "there are no training checkpoints"
        return
    rows = [["run", "step", "size", "saved", "status", "params"]]
    for run, params in zip(runs, _distinguishing([run.params for run in runs]), strict=True):
        step = f"{run.step:,} of {run.total_steps:,}" if run.checkpoints else "none"
        rows.append([run.folder.name, step, format_bytes(run.size), _age(run.saved), _status(run), params])
    yield from aligned([row if any(row[5] for row in rows[1:]) else row[:5] for row in rows], right=(1, 2))


_LONGEST_PARAMS = 60


def _distinguishing(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each run, its values of the params in which the runs differ, such as "seed 2, loss.name focal"."""
    known = [run for run in runs if run]
    names = dict.fromkeys(name for run in known[1:] for name in changed(known[0], run))
    for run in runs:
        values = flatten(effective(run))
        told = ", ".join(f"{name.removeprefix('train.')} {shown(values[name])}" for name in names if name in values)
        yield told if len(told) <= _LONGEST_PARAMS else f"{told[: _LONGEST_PARAMS - 1]}…"


def _status(run: SavedRun) -> str:
    if process := running_process(run.folder):
        return f"process {process}"
    return "complete" if run.complete else "unfinished"


def _age(saved: float) -> str:
    """The age of the checkpoint in the largest unit of which there are at least two."""
    seconds = max(time.time() - saved, 0)
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds:.0f} seconds ago"


def clean(root: Path, names: Sequence[str], keep: int) -> Iterator[str]:
    """Deletes the runs whose names start with one of `names`, or all runs, except the `keep` most recently saved.

    `tokens` names the shards of tokenize; they are also deleted with all runs.

    Raises:
        PipelineError: a name matches no run or several runs.
    """
    if TOKEN_STORE in names or not (names or keep):
        yield from _clean_shards(root / TOKEN_STORE)
    if list(names) == [TOKEN_STORE]:
        return
    runs = saved_runs(root)
    chosen = [_find_run(name, runs) for name in names if name != TOKEN_STORE] if names else runs
    newest = runs[:keep]
    removed = freed = 0
    for run in chosen:
        if run in newest:
            continue
        process = running_process(run.folder)
        if process or not run.remove():
            yield f"kept {run.folder.name}: process {process} is training it"
            continue
        removed, freed = removed + 1, freed + run.size
    yield f"removed the checkpoints of {removed} run{'' if removed == 1 else 's'}, {format_bytes(freed)}"


def _clean_shards(root: Path) -> Iterator[str]:
    freed = 0
    for folder in settings_folders(root):
        size = folder_size(folder)
        if remove_settings(folder):
            freed += size
        else:
            yield f"kept {TOKEN_STORE}/{folder.name}: a process is making shards"
    if freed:
        yield f"removed the shards of tokenize, {format_bytes(freed)}"


def _find_run(name: str, runs: Sequence[SavedRun]) -> SavedRun:
    found = [run for run in runs if run.folder.name.startswith(name)]
    if len(found) != 1:
        there_are = ", ".join(run.folder.name for run in runs) or "none"
        what = "matches several runs" if found else "matches no run"
        raise PipelineError(f"{name!r} {what} (there are: {there_are})")
    return found[0]
