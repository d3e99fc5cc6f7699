"""A stage in several processes: joins the ranks that a launcher started, or starts them on this machine.

torchrun is not used to start them: it restarts after errors that recur, reports errors as tables and tracebacks,
and leaves its signal handlers installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.core.console import say
from pipeline.core.errors import Interrupted, PipelineError
from pipeline.core.files import write_json
from pipeline.distributed.interrupt import LAUNCHER, StopSignal
from pipeline.distributed.process_group import TCPStore, process_group, ranks_from_environment
from pipeline.distributed.ranks import Ranks
from pipeline.model.device import choose_device

if TYPE_CHECKING:
    from pipeline.params.params import Params

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun sets it, too, and prints its content
_SECONDS_TO_LEAVE = 300
_SECONDS_BETWEEN_LOOKS = 0.1
_CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


Work = Callable[[Ranks], Callable[[], None] | None]
"""A stage's work on one rank. It may return what is left to do for this rank alone, without the others."""


def run_on_ranks(stage: str, work: Work, params: Params, processes: int, resumes: bool = False) -> None:
    """Calls `work` if a launcher started this process as a rank; otherwise starts `processes` ranks.

    Each rank runs the command `stage` with the same params. If one fails, the others are terminated. If the stage
    `resumes`, all restart after a crash from the last training checkpoint, at most `runtime.restarts` times.

    Raises:
        Interrupted: on SIGINT or SIGTERM; the ranks have exited, after saving if the stage resumes.
        PipelineError: a rank failed; the message is the rank's own.
    """
    ranks = ranks_from_environment()
    if ranks is not None:
        with _errors_reported():
            with process_group(ranks, choose_device(params.runtime.device).type == "cuda"):
                left = work(ranks)
            if left is not None:
                left()
        return
    restarts = params.runtime.restarts if resumes else 0
    again = "run it again to resume" if resumes else "run it again"
    for attempt in range(restarts + 1):
        try:
            _run_once(stage, params, processes, again)
            return
        except _CrashError as crash:
            if attempt == restarts:
                raise PipelineError(f"{crash}: {again}") from None
            say(f"{crash}: restarting from the last training checkpoint ({attempt + 1} of {restarts})")


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Writes an error of this rank to the file that the launcher reads. Under our launcher, the rank prints
    nothing: one error is one line."""
    try:
        yield
    except (PipelineError, Interrupted) as error:
        if _ERROR_FILE in os.environ:
            write_json(Path(os.environ[_ERROR_FILE]), {"message": str(error), "timestamp": int(time.time())})
        if LAUNCHER not in os.environ:
            raise
        raise SystemExit(128 + error.signal_number if isinstance(error, Interrupted) else 1) from None


class _CrashError(PipelineError):
    """A signal killed a rank; a restart may succeed."""


def _run_once(stage: str, params: Params, processes: int, again: str) -> None:
    """Runs the ranks once, until all have exited. Raises as `run_on_ranks` does, or _CrashError."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # their rendezvous
    stop = _ForwardSignals()
    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        folder = Path(name)
        write_json(folder / "params.yaml", params.model_dump(mode="json"))
        with stop.caught():
            try:
                for rank in range(processes):
                    workers.append(_start(stage, rank, processes, folder, store.port))
                while True:
                    codes = [worker.poll() for worker in workers]
                    if any(codes) or None not in codes or stop.number is not None:
                        break
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            finally:
                _end(workers, stop.received or signal.SIGTERM)
        if stop.received is not None:
            raise Interrupted(stop.received, f"{stage} stopped; {again}")
        for rank, code in enumerate(codes):
            if code:
                if code - 128 in (signal.SIGINT, signal.SIGTERM):
                    raise Interrupted(code - 128, f"{stage} stopped; {again}")
                _raise_failure(rank, code, folder / f"error-{rank}.json")


def _start(stage: str, rank: int, processes: int, folder: Path, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher hosts the store, no rank does
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        LAUNCHER: str(os.getpid()),
        _ERROR_FILE: str(folder / f"error-{rank}.json"),
    }
    command = (sys.executable, "-m", "pipeline", stage, "--params", str(folder / "params.yaml"))
    # In a new session: a terminal's Ctrl-C reaches only the launcher, which forwards it.
    return subprocess.Popen(command, env=os.environ | environment, start_new_session=True)


def _end(workers: list[subprocess.Popen[bytes]], number: int) -> None:
    """Sends a signal to all processes; kills those that do not exit in time."""
    for worker in workers:
        worker.send_signal(number)  # no effect on one that has exited
    end = time.monotonic() + _SECONDS_TO_LEAVE
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _raise_failure(rank: int, code: int, error_file: Path) -> None:
    """Raises the error of a failed process, from its exit code and its error file."""
    if code < 0:
        kind = _CrashError if -code in _CRASHES else PipelineError
        raise kind(f"rank {rank} was killed by {signal.Signals(-code).name}")
    if not error_file.is_file():
        raise PipelineError(f"rank {rank} exited with code {code}; see its message above")
    raise PipelineError(f"rank {rank} failed: {json.loads(error_file.read_bytes())['message']}")


class _ForwardSignals(StopSignal):
    """Records a signal to the launcher; the launcher forwards it to the ranks, which print a message."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)  # a second one kills the launcher; the ranks notice
