"""Publishing that fails, or is killed, at any of its steps: a stage's outputs are then all of one run."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.case import Break, Case, both, case, set_param

_CALLS = ("rename", "replace", "mkdir", "unlink", "fsync", "rmdir", "link", "symlink", "open")
_NEXT = {"tokenize": "split", "split": "train", "train": "evaluate", "evaluate": "export", "export": "evaluate"}
_CHANGE = {"tokenize": ("tokenize.tokenizer.bpe.vocab_size", "270"), "split": ("split.seed", "5"),
           "train": ("train.seed", "5"), "evaluate": ("evaluate.generation.seed", "9"), "export": ("export.weights",
               "last")}  # fmt: skip


def failing(number: int, how: int) -> Callable[[], None]:
    """Makes the NUMBER-th change of an output's file fail: with an errno, or by SIGKILL (0)."""

    def plant() -> None:
        left = [number]

        def wrapped(name: str) -> Callable[..., Any]:
            original = getattr(os, name)

            def call(*arguments: Any, **options: Any) -> Any:
                if any(each in str(arguments[0]) for each in ("/artifacts/", "/metrics/", "/reports")):
                    left[0] -= 1
                    if left[0] == 0:
                        if how == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                        raise OSError(how, os.strerror(how), str(arguments[0]))
                return original(*arguments, **options)

            return call

        for name in _CALLS:
            setattr(os, name, wrapped(name))

    return plant


def locked(path: str) -> Break:
    return lambda root: (root / path).chmod(0o555)


def _full(root: Path) -> None:
    """Something else in the place of the last file that train writes."""
    (root / "metrics" / "timing.tsv").unlink()
    (root / "metrics" / "timing.tsv").mkdir()


def _stopped(stage: str, number: int, how: int) -> Case:
    note = f"{'SIGKILL' if how == 0 else errno.errorcode[how]} at change {number} of a file"
    return case(note, stage, set_param(*_CHANGE[stage]), plant=failing(number, how), killed=how == 0,
                then=tuple(_NEXT[stage].split()) if how == 0 else (),
                left=r"\.(partial|old)-\d+")  # fmt: skip


FIXED: list[Case] = [
    *(case(f"{folder} is read-only", stage, both(set_param(*_CHANGE[stage]), locked(folder)), want="error",
        unprivileged=True)
      for stage, folder in [("train", "metrics"), ("evaluate", "metrics"), ("evaluate", "."), ("train",
          "artifacts"),
                            ("tokenize", "artifacts"), ("split", "artifacts"), ("export", "artifacts")]),
    *(case("a folder in the place of a metrics file", stage, both(set_param(*_CHANGE[stage]), breaks), want="error")
      for stage, breaks in [
          ("train", _full),
          ("evaluate", lambda root: ((root / "metrics/evaluate.json").unlink(),
              (root / "metrics/evaluate.json").mkdir())),
      ]),
    *(case("metrics is a file", stage, both(set_param(*_CHANGE[stage]), lambda root: (
        shutil.rmtree(root / "metrics"), (root / "metrics").write_text("x"))), want="error") for stage in ("train",
        "evaluate")),
    *(_stopped(stage, number, how) for stage in ("split", "train", "tokenize") for how in (0, errno.ENOSPC,
        errno.EACCES)
      for number in range(1, 16)),
]  # fmt: skip


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """A failure, or a kill, at any step of any stage."""
    stage = draw.choice(("tokenize", "split", "split", "train", "evaluate"))
    return _stopped(
        stage, draw.randint(1, 40), draw.choice((0, errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT))
    )
