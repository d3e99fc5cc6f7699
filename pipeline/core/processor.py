"""The CPU cores and the memory of this process; without torch, which tokenize and split do not import."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_as_many_threads_as_asked() -> None:
    """Removes the settings with which OpenMP runs fewer threads than a program asks for; `runtime.threads` decides.

    oneDNN divides a bf16 product among the threads that it asked for. With fewer, it leaves the parts of the others
    uncomputed (torch 2.13), and says nothing. Besides, with another number of threads, sums have other last bits.
    OpenMP reads its settings when torch is imported.
    """
    os.environ["OMP_DYNAMIC"] = "false"
    for name in ("OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS"):
        os.environ.pop(name, None)


def peak_memory() -> int:
    """The peak resident memory of this process, in bytes.

    On Linux it is read from /proc: `getrusage` includes the peak of the parent process.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.is_file() else None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
