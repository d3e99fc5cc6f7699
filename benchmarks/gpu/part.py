"""A part of the GPU benchmark: a function that is called in a process of its own, within a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from benchmarks.measure import ROOT

PASSED, FAILED, MEASURED, LEFT_OUT = "passed", "FAILED", "measured", "left out"


class LeftOutError(Exception):
    """A part cannot be tried on this machine; the message says why."""


@dataclass(frozen=True)
class Found:
    """What a part found; a line of the table.

    Attributes:
        result: "passed", "FAILED", "measured" or "left out".
        note: A remark, or the reason.
        tokens_per_second: The median rate of a measurement.
        flops_per_token: Floating-point operations that a token costs.
        peak_memory: Bytes.
        flops: Floating-point operations per second; of the matrix products alone.
        seconds: The duration of the part, with its start-up.
    """

    result: str
    note: str = ""
    tokens_per_second: float | None = None
    flops_per_token: float | None = None
    peak_memory: int | None = None
    flops: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """A part to run.

    Attributes:
        name: Its name in the table.
        call: Its function, as "module:function" of this package; it returns a `Found`.
        settings: The function's arguments, as plain values.
        limit: The seconds after which its process is killed.
    """

    name: str
    call: str
    settings: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0

    def run(self, until: float = float("inf")) -> Found:
        """Runs it in a process of its own until `until`, of the monotonic clock, at the latest."""
        started = time.monotonic()
        limit = min(self.limit, until - started)
        if limit <= 0:
            return Found(LEFT_OUT, "no time was left")
        command = [sys.executable, "-m", "benchmarks.gpu.child", self.call, json.dumps(self.settings)]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # A compiler that is killed leaves half a file: no other part must find it.
        with (
            TemporaryDirectory(ignore_cleanup_errors=True) as cache,
            TemporaryFile("w+") as out,
            TemporaryFile("w+") as errors,
        ):
            environment = {
                **os.environ, "PYTHONPATH": paths, "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton",
            }  # fmt: skip
            child = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=errors, env=environment, start_new_session=True
            )
            try:
                code: int | None = child.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _kill_all(child)
            taken = time.monotonic() - started
            if code is None:
                return Found(LEFT_OUT, f"it was stopped after {taken:.0f} s", seconds=taken)
            last = [_last_line(file.seek(0) or file.read()) for file in (out, errors)]
        if code:
            return Found(FAILED, (last[1] or f"exit code {code}")[:300], seconds=taken)
        return Found(**{**json.loads(last[0]), "seconds": taken})


def _kill_all(child: subprocess.Popen[bytes]) -> None:
    """Ends the process with its own children, such as compilers."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def outcome(call: str, settings: dict[str, Any]) -> Found:
    """Calls the function of a part in this process. An AssertionError means that a check failed."""
    module, name = call.split(":")
    function: Callable[..., Found] = getattr(import_module(f"benchmarks.gpu.{module}"), name)
    try:
        return function(**settings)
    except LeftOutError as error:
        return Found(LEFT_OUT, str(error))
    except AssertionError as error:
        return Found(FAILED, str(error) or "an assertion failed")
