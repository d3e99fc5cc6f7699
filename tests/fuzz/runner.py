"""Runs cases in forks of this process, which has imported everything, and judges what each of them did."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import re
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fuzz import project
from tests.fuzz.case import Case, closed_pipe
from tests.fuzz.shared import imported, quicken, share

_MAY_CHANGE = {
    "tokenize": ("artifacts/tokens/",), "split": ("artifacts/splits/",),
    "train": ("artifacts/checkpoint/", "metrics/train.json", "metrics/history.tsv", "metrics/steps.tsv",
              "metrics/timing.tsv", "metrics/performance.json"),
    "evaluate": ("reports/", "metrics/evaluate.json"), "export": ("artifacts/export/",), "preset": ("params.yaml",),
}  # fmt: skip
_OUTPUT = {"tokenize": "artifacts/tokens", "split": "artifacts/splits", "train": "artifacts/checkpoint",
           "evaluate": "reports", "export": "artifacts/export"}  # fmt: skip
_WATCHED = ("artifacts", "metrics", "reports", "params.yaml")
_LONGEST_MESSAGE = 20_000


@dataclass(frozen=True)
class Limits:
    """What a command may take: seconds of processor time, seconds on the clock, bytes more than at its start."""

    processor: float = 20.0
    clock: float = 60.0
    growth: int = 2 * 10**9


_ENOUGH = Limits(300, 600, 8 * 10**9)


@dataclass(frozen=True)
class Outcome:
    """What a command did; `ended` is "hang" or "growth" where it was ended for that."""

    code: int
    out: str
    err: str
    ended: str
    seconds: float
    grown: int


@dataclass(frozen=True)
class Fault:
    """What a command must not do: the sort, what shows it, and a key that is the same for the same fault."""

    sort: str
    shown: str
    key: str


@dataclass
class Tried:
    """A case that was tried."""

    id: str
    note: str
    command: str
    seconds: float
    faults: list[Fault] = field(default_factory=list)


def make_template(folder: Path) -> Path:
    """The project that all cases are copies of; made in a fork, so that this process stays without threads.

    What the fork imported is then imported here, once for all cases.
    """
    root = folder / "template"
    outcome = _forked(lambda: _made(root, folder / "imported.txt"), folder / "out", folder, _ENOUGH, True)
    if outcome.code != 0:
        raise SystemExit(f"error: the tiny project could not be made: {outcome.out}{outcome.err}")
    imported((folder / "imported.txt").read_text(encoding="utf-8").split())
    quicken()
    return root


def _made(root: Path, modules: Path) -> None:
    """Makes the project, runs the commands that need no stage, and writes down what all of them imported."""
    from pipeline.cli import cli
    from pipeline.command_line.process import exit_code

    project.make(root)
    quicken()
    for command in ("check", "generate the", "score data/raw/text-00.txt", "compare HEAD .", "runs", "plugins"):
        if (code := exit_code(cli, command.split())) != 0:
            raise SystemExit(f"the tiny project's {command} ended with exit code {code}")
    names = (name for name in sys.modules if not name.startswith(("plugins.", "__")))
    modules.write_text("\n".join(names), encoding="utf-8")


def place(template: Path, folder: Path) -> None:
    """Makes this process the one whose forks try cases below `folder`."""
    root = folder / "case"
    project.copy(template, root, whole=True)
    share(root)
    shutil.rmtree(root)
    gc.freeze()  # a fork copies what it touches: the collector must not touch all of it


def attempt(case: Case, id: str, template: Path, folder: Path, limits: Limits) -> Tried:
    """Tries a case in a fresh copy of the project below `folder`, which is removed afterwards."""
    root, started = folder / "case" / case.folder, time.monotonic()
    project.copy(template, root, whole="compare" in case.command or "lock" in case.command)
    tried = Tried(id, case.note, " ".join(case.command)[:300], 0.0)
    try:
        case.breaks(root)
        before = _snapshot(root)
        outcome = _forked(lambda: _command(case, case.command), folder / "out", root, limits, not case.unprivileged)
        tried.faults += _judge(case, outcome, before, root)
        if case.then:
            before = _snapshot(root)
            again = _forked(lambda: _command(case, case.then, False), folder / "out", root, limits, True)
            then = Case(case.note, case.then)
            tried.faults += _judge(then, again, before if not case.killed else {}, root)
            if case.killed and (wrong := _broken(case.command[0], root)):
                tried.faults.append(
                    Fault("outputs", wrong, f"{case.command[0]} | outputs | killed: {_digitless(wrong)}")
                )
    finally:
        _unlock(folder / "case")
        shutil.rmtree(folder / "case", ignore_errors=True)
    tried.seconds = time.monotonic() - started
    return tried


def _command(case: Case, arguments: tuple[str, ...], planted: bool = True) -> None:
    from pipeline.cli import main

    sys.argv = ["pipeline", *arguments]
    if planted:
        case.plant()
    main()


# ── in a fork ─────────────────────────────────────────────────────────────────────────────────────


def _forked(work: Callable[[], object], said: Path, cwd: Path, limits: Limits, privileged: bool) -> Outcome:
    """Runs `work` in a fork that stands in `cwd` and writes to SAID.out and SAID.err; ends it at a limit."""
    sys.stdout.flush()
    sys.stderr.flush()
    files = [said.with_suffix(".out"), said.with_suffix(".err")]
    at_first, started = psutil.Process().memory_info().rss, time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(work, files, cwd, privileged)
    watch, ended, processor = os.pidfd_open(pid), "", 0.0
    try:
        while not select.select([watch], [], [], 0.05)[0]:
            memory, processor = _use(pid, processor)
            if memory - at_first > limits.growth:
                ended = "growth"
            elif processor > limits.processor or time.monotonic() - started > limits.clock:
                ended = "hang"
            if ended:
                break
    finally:
        os.close(watch)
        _end_group(pid)
    _, status, used = os.wait4(pid, 0)
    grown = used.ru_maxrss * 1024 - at_first
    if not ended and grown > limits.growth:
        ended = "growth"
    out, err = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return Outcome(os.waitstatus_to_exitcode(status), out, err, ended, time.monotonic() - started, grown)


def _child(work: Callable[[], object], files: list[Path], cwd: Path, privileged: bool) -> None:
    """Never returns: the exit code is what the interpreter's would be."""
    code: object = 1
    try:
        os.setsid()
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(cwd)
        if not privileged:
            _obey_permissions()
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _obey_permissions() -> None:
    """Gives up root's right to pass over the permissions of files (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0], sets[1] = sets[0] & ~0b110, sets[1] & ~0b110
    libc.capset(header, sets)


def _use(pid: int, known: float) -> tuple[int, float]:
    """Bytes of memory and seconds of processor time of a process."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return process.memory_info().rss, times.user + times.system + times.children_user
    except psutil.Error:
        return 0, known


def _end_group(pid: int) -> None:
    """Ends a fork and what it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _unlock(root: Path) -> None:
    """Makes folders removable whose permissions a case took away."""
    for folder, names, _ in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755)


# ── judging ───────────────────────────────────────────────────────────────────────────────────────


def _snapshot(root: Path) -> dict[str, str]:
    """Inode, size and time of each output and of params.yaml, by path."""
    return {path.relative_to(root).as_posix(): _digest(path) for name in _WATCHED for path in _files(root / name)}


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for each in path.iterdir():
            yield from _files(each)
    elif os.path.lexists(path) and not _is_lock(path.name):
        yield path


def _digest(path: Path) -> str:
    try:
        found = path.lstat()
        return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"
    except OSError as error:
        return str(error.errno)


def _judge(case: Case, outcome: Outcome, before: dict[str, str], root: Path) -> list[Fault]:
    return [Fault(sort, shown[:400], f"{case.command[0]} | {sort} | {key}") for sort, shown, key in
            _found(case, outcome, before, root)]  # fmt: skip


def _found(case: Case, outcome: Outcome, before: dict[str, str], root: Path) -> Iterator[tuple[str, str, str]]:
    """The sort of each fault, what shows it, and what makes it the same as another."""
    first = outcome.err.strip().splitlines()[0] if outcome.err.strip() else ""
    if outcome.ended == "hang":
        yield "hang", f"{outcome.seconds:.0f} s", case.note
    elif outcome.ended == "growth":
        yield "growth", f"{outcome.grown / 1e9:.1f} GB", case.note
    elif outcome.code < 0 and not case.killed:
        yield "crash", f"signal {-outcome.code}", case.note
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        shown, key = _traceback(outcome.err if "Traceback" in outcome.err else outcome.out)
        yield "traceback", shown, key
    elif outcome.code > 0 and not outcome.ended:
        yield from _message(case, outcome, first)
    if (outcome.ended or outcome.code) and before:
        after = _snapshot(root)
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        if outcome.ended:  # what a killed process could not clean
            changed = [name for name in changed if not re.search(r"\.(partial|old)-\d+", name)]
        if changed and not case.killed:
            yield (
                "outputs",
                f"rc {outcome.code}, changed: {', '.join(changed)[:200]}; {first}",
                _digitless(changed[0]),
            )
    elif not outcome.ended and not outcome.code:
        yield from _done(case, outcome, before, root)


def _message(case: Case, outcome: Outcome, first: str) -> Iterator[tuple[str, str, str]]:
    """What is wrong with how an error is told."""
    lines = outcome.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if case.want == "ok":
        yield "refused", first, case.note
    if len(errors) != 1 or len(lines) != 1:
        yield "message", f"{len(lines)} lines, {len(errors)} of them errors: {first}", _digitless(first)
    elif len(errors[0]) > _LONGEST_MESSAGE:
        yield "message", f"{len(errors[0]):,} characters: {first[:100]}", _digitless(first[:60])
    elif case.names and case.names not in errors[0] + outcome.out:
        yield "unnamed", f"no {case.names!r}: {first}", f"{case.names} {_digitless(first)[:60]}"


def _done(case: Case, outcome: Outcome, before: dict[str, str], root: Path) -> Iterator[tuple[str, str, str]]:
    """What is wrong after exit code 0."""
    stage, after = case.command[0], _snapshot(root)
    output = _OUTPUT.get(stage)
    if not outcome.out.strip() and case.plant is not closed_pipe:
        yield "silent", "exit code 0, and nothing was printed", case.note
    elif output and not _is_new(output, before, after):
        yield "silent", f"exit code 0, and {output} is as it was", case.note
    elif case.want == "error":
        yield "accepted", f"exit code 0: {outcome.out.strip().splitlines()[-1][:150]}", case.note
    elif wrong := case.after(root, outcome.out):
        yield "wrong", wrong, case.note
    elif wrong := _not_of_one_run(stage, root):
        yield "outputs", wrong, case.note
    elif wrong := _not_finite(stage, outcome.out, root):
        yield "not finite", wrong, case.note
    mine = _MAY_CHANGE.get(stage, ())
    for name in sorted({*before, *after}) if before else ():
        if (
            before.get(name) != after.get(name)
            and not name.startswith(mine or "\0")
            and not re.search(case.left, name)
        ):
            yield "outputs", f"rc 0, changed: {name}", _digitless(name)
            break


def _is_new(output: str, before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether the stage's output has other files than before (a published folder has other inodes)."""
    now = {name: digest for name, digest in after.items() if name.startswith(f"{output}/")}
    return bool(now) and not any(before.get(name) == digest for name, digest in now.items())


def _broken(stage: str, root: Path) -> str:
    """What a killed stage, and a command after it, left that is not one run's; empty for nothing."""
    left = sorted(path.name for path in (root / "artifacts").glob(".*") if not _is_lock(path.name))
    if not (root / _OUTPUT[stage]).is_dir():
        return f"{_OUTPUT[stage]} is gone"
    return f"artifacts/{left[0]} is left" if left else _not_of_one_run(stage, root)


def _is_lock(name: str) -> bool:
    return name.startswith(".") and name.endswith("lock")


def _not_of_one_run(stage: str, root: Path) -> str:
    """What does not belong together: a folder and its manifest, or metrics/ and the copy in the folder."""
    output = root / _OUTPUT.get(stage, "nothing")
    if (output / "manifest.json").is_file():
        files = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            if hashlib.sha256((output / name).read_bytes()).hexdigest() != entry["sha256"]:
                return f"{output.name}/{name} is not that of the manifest"
    for copied in sorted((output / "metrics").glob("*")):
        published = root / "metrics" / copied.name
        if not published.is_file() or published.read_bytes() != copied.read_bytes():
            return f"metrics/{copied.name} is not of the run that made {output.name}"
    return ""


_NUMBER_LOST = re.compile(r"(?<![\w.])-?(nan|inf|infinity)(?![\w])", re.IGNORECASE)


def _not_finite(stage: str, out: str, root: Path) -> str:
    """A NaN or an infinity among what was measured."""
    measured = [line for line in out.splitlines() if not line.startswith("note: ")]  # a note quotes what was broken
    lines = measured if stage in ("train", "evaluate", "score") else []
    return next((line[:150] for line in lines if _NUMBER_LOST.search(line) and "corrupt" not in line), "")


def _traceback(text: str) -> tuple[str, str]:
    """The exception's line, and its type with the last frame of the project's own."""
    frames = re.findall(r'File "([^"]*)", line (\d+), in (\S+)', text)
    project_frames = (
        [each for each in frames if "/pipeline/" in each[0] and "site-packages" not in each[0]]
        or frames
        or [("?", "0", "?")]
    )
    plugin = [each for each in frames if "/plugins/" in each[0]]
    file, line, function = (plugin or project_frames)[-1]
    file = re.sub(r".*/((?:pipeline|plugins)/)", r"\1", file)
    tail = text[text.rindex('  File "') :] if frames else text
    last = next((line for line in tail.splitlines() if re.match(r"\w", line)), text.strip())
    kind = last.split(":")[0]
    return f"{last[:200]} ({file} line {line}, {function})", f"{kind} in {file} {function}"


def _digitless(text: str) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", text)[:120]
