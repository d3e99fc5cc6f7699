"""The tiny project that every case breaks: all stages have run, a state is kept, and git has a commit of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[2]
_SETTINGS = {
    "tokenize.corpus.name": "files", "tokenize.tokenizer.bpe.vocab_size": 280, "split.val": 0.2, "split.test": 0.2,
    "model.name": "gpt2", "model.context_length": 16, "model.n_layers": 1, "model.n_heads": 2,
    "model.emb_dim": 16,
    "model.dropout": 0, "model.pad_vocab_to": 8, "train.budget.amount": 3, "train.batch_size": 2,
    "train.micro_batch_size": 2, "train.precision": "fp32", "train.schedule.warmup_steps": 1,
    "train.optimizer.name": "adamw", "train.evaluation.every": 2, "train.evaluation.windows": 2,
    "train.eval_callbacks.sample_text.max_new_tokens": 2, "evaluate.batch_size": 64,
    "evaluate.generation.max_new_tokens": 2, "evaluate.generation.prompts": ["the"], "runtime.threads": 1,
    "runtime.compile": False, "runtime.save_seconds": 0, "runtime.device": "cpu",
}  # fmt: skip
_WORDS = ("the", "river", "runs", "to", "a", "sea", "of", "light", "and", "stone", "we", "listen")


def values() -> dict[str, Any]:
    """The values of the tiny project's params.yaml."""
    loaded: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    for key, value in _SETTINGS.items():
        *parents, last = key.split(".")
        section = loaded
        for parent in parents:
            section = section[parent]
        section[last] = value
    return loaded


def make(root: Path) -> None:
    """Lays the project out and runs its stages, in the current process."""
    from pipeline.cli import cli
    from pipeline.command_line.process import exit_code

    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    for number in range(8):
        text = " ".join(_WORDS[(number * 7 + place * place) % 12] for place in range(80))
        (raw / f"text-{number:02}.txt").write_text(f"{text}.\n", encoding="utf-8")
    shutil.copytree(REPOSITORY / "plugins", root / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("params.schema.json", "dvc.yaml", "environment.yaml", ".gitignore"):
        if (REPOSITORY / file).is_file():
            shutil.copy(REPOSITORY / file, root)
    (root / "params.yaml").write_text("\n".join(_lines(values())) + "\n", encoding="utf-8")
    os.chdir(root)
    for stage in ("tokenize", "split", "train", "evaluate", "export"):
        if (code := exit_code(cli, [stage])) != 0:
            raise SystemExit(f"the tiny project's {stage} ended with exit code {code}")
    shutil.copytree(root / "artifacts" / "export", root / "data" / "weights" / "hf")
    shutil.copytree(root / "artifacts" / "checkpoint", root / "data" / "weights" / "own")
    _commit(root)


def _lines(section: dict[str, Any], indent: str = "") -> Iterator[str]:
    """YAML with a key on each line, which `set_param` can change."""
    for name, value in section.items():
        key = name if name.replace("_", "").isalnum() else json.dumps(name)
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"


def _commit(root: Path) -> None:
    """Makes a commit of which DVC's cache holds the reports; the commit `HEAD` is what `compare` reads."""
    entries = []
    for path in sorted(path for path in (root / "reports").rglob("*") if path.is_file()):
        digest = cached(root, path.read_bytes())
        entries.append({"md5": digest, "relpath": path.relative_to(root / "reports").as_posix()})
    folder = cached(root, json.dumps(entries).encode(), ".dir")
    lock = {"schema": "2.0", "stages": {"evaluate": {"cmd": "x", "outs": [{"path": "reports", "md5": folder}]}}}
    YAML(typ="safe").dump(lock, root / "dvc.lock")
    git(root, "init", "-q", "--template=")
    git(root, "add", "dvc.lock", "params.yaml", "metrics")
    commit(root)


def cached(root: Path, content: bytes, ending: str = "") -> str:
    """Puts a file into DVC's cache; returns its digest."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest() + ending
    path = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return digest


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "gc.auto=0", *arguments], cwd=root, check=True, capture_output=True)


def commit(root: Path) -> None:
    """Commits what git tracks in the project."""
    git(root, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qam", "x")


def copy(template: Path, root: Path, whole: bool) -> None:
    """A copy for a case: links to the same files, but for the states; git's and DVC's folders come only if `whole`.

    Nothing writes into a file that is there: the pipeline publishes by rename, and
    `case.write` takes it away first.
    """
    left = {".git", ".dvc"} if not whole else set()
    root.mkdir(parents=True)
    for each in template.iterdir():
        if each.name in left:
            continue
        if each.is_dir():
            how: Any = shutil.copy2 if each.name == ".resume" else os.link
            shutil.copytree(each, root / each.name, copy_function=how, symlinks=True)
        else:
            os.link(each, root / each.name)
