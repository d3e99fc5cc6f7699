"""Broken surroundings: environment variables, the folder that a command runs in, files that are no files, links."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.case import CHECKPOINT, SPLITS, TOKENS, Break, Case, both, case, set_param, write

_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_CPUS_ON_NODE",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_LOCALID",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TIKTOKEN_CACHE_DIR",
    "DATA_GYM_CACHE_DIR",
    "HOME",
    "TMPDIR",
    "TERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "LANG",
    "LC_ALL",
    "DVC_ROOT",
    "DVC_STAGE",
    "DVC_EXP_NAME",
    "PATH",
    "TZ",
    "SOURCE_DATE_EPOCH",
    "GIT_DIR",
    "XDG_CACHE_HOME",
    "CXX",
    "PYTHONWARNINGS",
)
_VALUES = (
    "",
    "abc",
    "0",
    "-1",
    "1",
    "1.5",
    "999999999",
    "9" * 99,
    "/nonexistent",
    "/dev/null",
    "params.yaml",
    "é\n",
    "../..",
)
_COMMANDS = (
    "check",
    "tokenize",
    "split",
    "train",
    "evaluate",
    "export",
    "generate the",
    "score data/raw/text-00.txt",
    "runs",
    "plugins",
    "compare HEAD .",
)
_WAITS = {("WORLD_SIZE", "999999999"), ("SLURM_STEP_NUM_TASKS", "999999999")}


def environment(**values: str) -> Callable[[], None]:
    """Sets environment variables in the process of the command."""
    return lambda: os.environ.update(values)


def instead(path: str, make: Callable[[Path], object]) -> Break:
    """Puts something else in the place of a file or folder."""

    def breaks(root: Path) -> None:
        target = root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif os.path.lexists(target):
            target.unlink()
        make(target)

    return breaks


_INSTEAD: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "nothing": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty file": lambda path: path.write_bytes(b""),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}
_PLACES = [  # a path, and the commands that read it
    ("params.yaml", ("check", "tokenize", "train", "preset", "preset tiny")),
    ("data", ("tokenize", "check", "train")),
    ("data/raw/text-00.txt", ("tokenize", "check", "score data/raw/text-00.txt")),
    ("plugins", ("train", "plugins")),
    ("plugins/losses", ("train", "plugins", "check")),
    ("plugins/losses/cross_entropy.py", ("train", "plugins")),
    ("artifacts", ("tokenize", "train", "evaluate", "runs")),
    ("metrics", ("train", "evaluate", "check")),
    ("reports", ("evaluate", "export", "compare HEAD .")),
    (TOKENS, ("tokenize", "split", "check")),
    (f"{TOKENS}/meta.json", ("split", "tokenize")),
    (f"{TOKENS}/tokenizer.json", ("split",)),
    (f"{TOKENS}/tokens-00000-of-00001.bin", ("split",)),
    (f"{TOKENS}/tokens-00000-of-00001.idx.npy", ("split",)),
    (f"{SPLITS}/train.bin", ("train", "evaluate")),
    (f"{SPLITS}/manifest.json", ("train", "evaluate")),
    (f"{SPLITS}/train.counts.npy", ("evaluate", "train")),
    (CHECKPOINT, ("train", "evaluate", "generate the")),
    (f"{CHECKPOINT}/best.pth", ("evaluate", "generate the", "export")),
    (f"{CHECKPOINT}/run.json", ("export", "evaluate")),
    (f"{CHECKPOINT}/config.json", ("score data/raw/text-00.txt", "generate the")),
    (f"{CHECKPOINT}/weights.json", ("generate the", "evaluate")),
    (f"{CHECKPOINT}/metrics", ("evaluate", "train")),
    ("metrics/train.json", ("evaluate", "train")),
    ("metrics/history.tsv", ("evaluate", "train")),
    ("reports/evaluation.json", ("export", "compare HEAD .")),
    (".resume", ("train", "runs", "clean --keep 1", "check")),
    ("dvc.lock", ("compare HEAD .", "check", "train")),
    ("dvc.yaml", ("check", "train", "compare HEAD .")),
    ("environment.yaml", ("lock", "check")),
    (".git", ("check", "compare HEAD .")),
    (".dvc", ("check", "compare HEAD .")),
    ("artifacts/export", ("export",)),
    ("artifacts/.publishing.json", ("train", "tokenize", "evaluate", "runs")),
    (".gitignore", ("check",)),
    ("params.schema.json", ("check", "schema")),
    ("docs", ("schema",)),
]
_NAMES = (
    "with spaces",
    "it's",
    'say "x"',
    "é ü",
    "河流",
    "50% {x}",
    "$(touch x)",
    "-rf",
    "a\nb",
    "#1",
    "x" * 200,
    "🌊",
    "a;b",
    "[x]",
    "*",
    "~",
    "data/raw/p",
    "\x1b[31mred",
    "plugins/losses/p",
)
_JOURNALS = (
    "",
    "[]",
    "3",
    "null",
    "{}",
    "[" * 9999,
    "7" * 5000,
    '{"x": 3}',
    '[["a", "b"]]',
    '[["../../x", "../../y"]]',
    '{"renames": [["/etc/passwd", "x"]]}',
    '{"moves": 3}',
    "\x00",
)


def _gone() -> None:
    folder = Path("gone")
    folder.mkdir()
    os.chdir(folder)
    Path.cwd().rmdir()


FIXED: list[Case] = [
    *(
        case(f"{name}={value!r}", "train", set_param("train.seed", "5"), plant=environment(**{name: value}))
        for name in (
            "OMP_NUM_THREADS",
            "LOCAL_WORLD_SIZE",
            "SLURM_CPUS_ON_NODE",
            "CUDA_VISIBLE_DEVICES",
            "DVC_ROOT",
            "TMPDIR",
        )
        for value in ("abc", "0", "-1", "/nonexistent")
    ),
    *(
        case(
            f"a launcher's {name}={value!r}",
            "train",
            plant=environment(
                **{"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", name: value}
            ),
            want="error",
        )
        for name, value in [
            ("RANK", "x"),
            ("RANK", "5"),
            ("RANK", "-1"),
            ("WORLD_SIZE", "0"),
            ("WORLD_SIZE", "x"),
            ("WORLD_SIZE", "-1"),
            ("LOCAL_RANK", "x"),
            ("LOCAL_RANK", "-1"),
        ]
    ),
    *(
        case("the folder is gone", command, plant=_gone, want="error", names="folder")
        for command in ("check", "train", "runs", "plugins")
    ),
    *(
        case(f"in a folder {name!r}", command, folder=name, want="ok")
        for name in _NAMES
        for command in ("train", "evaluate")
    ),
    *(
        case(f"{path} is {what}", commands[0], instead(path, make))
        for path, commands in _PLACES
        for what, make in _INSTEAD.items()
    ),
    *(
        case(f"a journal {text[:20]!r}", command, write("artifacts/.publishing.json", text))
        for text in _JOURNALS
        for command in ("train", "runs")
    ),
]


def random_case(draw: random.Random, values: dict[str, Any]) -> Case:
    """Variables of any value, something else in the place of a file, or a folder of any name."""
    kind = draw.random()
    if kind < 0.4:
        chosen = {draw.choice(_VARIABLES): draw.choice(_VALUES) for _ in range(draw.choice((1, 1, 2)))}
        chosen = {name: value for name, value in chosen.items() if (name, value) not in _WAITS}
        return case(f"{chosen}", draw.choice(_COMMANDS), plant=environment(**chosen))
    if kind < 0.5:
        name = "".join(draw.sample(" 'é\"$%\n[]{}~#;&|<>\\ab", 5))
        return case(f"in a folder {name!r}", draw.choice(_COMMANDS), folder=name)
    path, commands = draw.choice(_PLACES)
    what = draw.choice(list(_INSTEAD))
    breaks = instead(path, _INSTEAD[what])
    if draw.random() < 0.3:
        other, _ = draw.choice(_PLACES)
        if not other.startswith(path) and not path.startswith(other):
            breaks = both(breaks, instead(other, _INSTEAD[draw.choice(list(_INSTEAD))]))
    return case(f"{path} is {what}", draw.choice(commands), breaks)
