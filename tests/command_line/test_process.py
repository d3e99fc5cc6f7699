"""How a command ends: which of its children end with it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipeline.command_line.process import stopped

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]


def test_a_stopped_command_ends_its_compilers_and_leaves_other_children(capsys: pytest.CaptureFixture[str]) -> None:
    compiler = subprocess.Popen([*SLEEP, "site-packages/torch/_inductor/compile_worker/__main__.py"])
    tracker = subprocess.Popen(SLEEP)  # as wandb's, which still sends what it was given
    try:
        assert stopped("stopped by Ctrl-C", signal.SIGINT) == 130
        assert compiler.wait(10) == -signal.SIGKILL
        assert tracker.poll() is None
    finally:
        for child in (compiler, tracker):
            child.kill()
            child.wait()
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
