"""The commands of the stages: each folder of the package with a stage.py has one, and its docstring is the help."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import tokenize
from ast import literal_eval
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.command_line.options import read_params, with_params

if TYPE_CHECKING:
    from pipeline.core.paths import Paths

_PACKAGE = Path(__file__).resolve().parents[1]


def stage_names() -> list[str]:
    """The stages, in the order of the dvc.yaml beside the package, or else of that in the current folder. Without
    either, as of an installed package, in the order of their sections in a preset."""
    names = _found(r"cmd: python -m pipeline (\w+)", _PACKAGE.parent / "dvc.yaml", Path("dvc.yaml"))
    order = names or _found(r"^(\w+):", _PACKAGE / "params" / "presets" / "tiny.yaml")
    places = {name: place for place, name in enumerate(order)}
    stages = sorted(path.parent.name for path in _PACKAGE.glob("*/stage.py"))
    return sorted(stages, key=lambda name: places.get(name, len(places)))


def _found(pattern: str, *files: Path) -> list[str]:
    """What the pattern finds in the first of the files that exists: a YAML reader's import would take longer than
    `--help` may."""
    with suppress(OSError):
        for file in files:
            if file.is_file():
                return re.findall(pattern, file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return []


def stage_command(name: str) -> click.Command:
    """The command that runs the stage `name`. Its help is read, not imported, which may take seconds."""
    text = _docstring(_PACKAGE / name / "stage.py") or f"Run the stage {name}."

    @click.command(name, help=text, short_help=text.partition("\n\n")[0])
    @with_params
    def command(params_file: Path, overrides: tuple[str, ...]) -> None:
        params, paths = read_params(params_file, overrides)
        _note_overrides_unknown_to_dvc(paths, params_file, overrides)
        import_module(f"pipeline.{name}.stage").run(params, paths)

    return command


def _docstring(file: Path) -> str:
    """The docstring of a Python file; empty if it has none or is damaged. Only the file's beginning is parsed."""
    with suppress(OSError, SyntaxError, ValueError, tokenize.TokenError), file.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.STRING:
                return inspect.cleandoc(str(literal_eval(token.string)))
            if token.type not in (tokenize.ENCODING, tokenize.COMMENT, tokenize.NL):
                break
    return ""


def _note_overrides_unknown_to_dvc(paths: Paths, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Prints a note: `--set` changes the result, but DVC records the values of params.yaml. Of several ranks, the
    first one prints it."""
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") != "0":
        return
    unseen = [each for each in overrides if each.partition("=")[0].split(".")[0].strip() != "runtime"]
    if unseen and "DVC_STAGE" not in os.environ and (paths.root / ".dvc").exists():
        from pipeline.core.console import say
        from pipeline.params.reader import read_sections

        values = read_sections(params_file)
        settings = " ".join(f"-S {shlex.quote('+' * (not _has_key(values, each)) + each)}" for each in unseen)
        say(f"note: --set is not in params.yaml, so DVC does not record it; `dvc exp run {settings}` does")


def _has_key(values: Any, override: str) -> bool:
    """Whether the params file has the key. If not, `dvc exp run -S` needs a + to add it."""
    for part in override.partition("=")[0].strip().split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True
