"""A pool of processes that ends at once when its work is interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess

import psutil

from pipeline.core.errors import PipelineError


@contextmanager
def process_pool(processes: int) -> Iterator[Executor]:
    """A pool of new processes. If the block ends with an error, they are killed, and what they have started.

    Raises:
        PipelineError: a process died.
    """
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start)
    workers: Sequence[BaseProcess] = ()
    try:
        # The processes inherit that SIGINT is blocked: Ctrl-C reaches all processes of the terminal.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(processes):
                executor.submit(os.getpid)  # starts a process, if none is idle
            workers = [child for child in multiprocessing.active_children() if child not in before]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield executor
        executor.shutdown()
    except BrokenProcessPool:
        executor.shutdown()  # waits for the processes, whose exit codes are known then
        raise PipelineError(
            f"a process of `pipeline tokenize` {_end_of(workers)}: run it again; what it has finished is kept"
        ) from None
    finally:
        _kill([child for child in multiprocessing.active_children() if child not in before])
        executor.shutdown(cancel_futures=True)


def _start() -> None:
    """In each process: leaves Ctrl-C to the process that uses the pool, and ends when that has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # in one that was started later, without the mask
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            with suppress(psutil.Error):
                for process in psutil.Process(worker.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        process.kill()
            worker.kill()


def _end_of(workers: Sequence[BaseProcess]) -> str:
    """How the first process that died has ended; the pool ends the others with SIGTERM."""
    codes = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0, -signal.SIGTERM)]
    if not codes:
        return "died"
    if codes[0] == -signal.SIGKILL:
        return "was killed by SIGKILL, perhaps because memory ran out"
    return f"was killed by {signal.Signals(-codes[0]).name}" if codes[0] < 0 else f"ended with code {codes[0]}"
