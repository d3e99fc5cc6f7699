"""Starts the processes that train together on this machine, and tells how they ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import say
from pipeline.core.errors import Interrupted, PipelineError
from pipeline.core.files import write_json
from pipeline.train.interrupt import LAUNCHER, StopSignal

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from pipeline.params.params import Params

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_SECONDS_TO_LEAVE = 300
_SECONDS_BETWEEN_LOOKS = 0.5
_KILLED = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


def launch(params: Params, processes: int) -> None:
    """Runs the train stage in `processes` processes through torch's elastic launcher, and waits for them.

    Each is this very command with the params as they are here. When one dies, the others are ended, and after a
    crash they all start again from the last state, `runtime.restarts` times at the most.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the processes have saved and left.
        PipelineError: a process failed; the message is its own, with its rank.
    """
    restarts = params.runtime.restarts
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        file = Path(folder) / "params.yaml"
        write_json(file, params.model_dump(mode="json"))
        for attempt in range(restarts + 1):
            failure = _run_once(["-m", "pipeline", "train", "--params", str(file)], processes, folder)
            if failure is None:
                return
            rank, how, crashed = failure
            if not crashed or attempt == restarts:
                raise PipelineError(f"rank {rank} {how}" + (": run it again to go on" if crashed else ""))
            say(f"rank {rank} {how}: starting again from the last state ({attempt + 1} of {restarts})")


def _run_once(arguments: list[str], processes: int, folder: str) -> tuple[int, str, bool] | None:
    """Runs the processes to their end; None, or which failed first, how, and whether it crashed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"pipeline-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="localhost",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        shutdown_timeout=_SECONDS_TO_LEAVE,
    )
    environment = {LAUNCHER: str(os.getpid()), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with _handlers_kept(), _quiet(), _parent_watched(), _environment(**environment):
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as error:
            raise Interrupted(int(error.sigval), "training stopped; run it again to go on") from None
        except ChildFailedError as error:
            return _told(*error.get_first_failure())
    return None


def _told(rank: int, failure: ProcessFailure) -> tuple[int, str, bool]:
    """How a process failed, in words, and whether that was a crash that another start may not meet."""
    code = failure.exitcode
    if code - 128 in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted(code - 128, "training stopped; run it again to go on")
    if code < 0:
        return rank, f"was ended by {signal.Signals(-code).name}", -code in _KILLED
    message = str(failure.message)
    if "Traceback" in message or not Path(failure.error_file).is_file():
        return rank, f"ended with exit code {code}; its own message stands above", False
    return rank, f"failed: {message}", False


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """The launcher sets signal handlers and leaves them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _parent_watched() -> Iterator[None]:
    """Ends the processes when the process that this one works for is gone, as a SIGTERM would."""
    stop, done = StopSignal(), threading.Event()

    def watch() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            if stop.number is not None:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def _quiet() -> Iterator[None]:
    """The launcher logs tables of what is said here in one line."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def reported() -> Iterator[None]:
    """In a process that `launch` or torchrun started: leaves an error for the launcher to tell.

    Under `launch`, the process then ends without a word of its own: one error is one line.
    """
    try:
        yield
    except (PipelineError, Interrupted) as error:
        if _ERROR_FILE in os.environ:
            write_json(Path(os.environ[_ERROR_FILE]), {"message": str(error), "timestamp": int(time.time())})
        if LAUNCHER not in os.environ:
            raise
        raise SystemExit(128 + error.signal_number if isinstance(error, Interrupted) else 1) from None
