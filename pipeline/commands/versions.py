"""The installed packages that decide results, as environment.yaml lists them by the kinds of components; and what
the commands that write params.yaml record for DVC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.console import say
from pipeline.core.environment import environment_changes, environment_yaml, installed_versions
from pipeline.core.files import write_atomically
from pipeline.core.symlinks import record_symlinks
from pipeline.params.reader import load_params
from pipeline.plugin.registry import Registry
from pipeline.tokenize.stage import build_corpus

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params


def deciding_packages(params: Params, paths: Paths, installed: Registry) -> dict[str, dict[str, str]]:
    """By kind, the installed packages with components, and those that the chosen corpus makes its texts with.

    Args:
        params: Choose the corpus and its options.
        paths: The project's paths.
        installed: The components of installed packages.

    Raises:
        PipelineError: the corpus, or one of its options, does not exist.
    """
    packages = installed.packages()
    used = installed_versions(build_corpus(params, paths).packages())
    return packages | {"corpora": dict(sorted({**used, **packages["corpora"]}.items()))}


def record(params: Params, paths: Paths) -> Iterator[str]:
    """Writes environment.yaml, and the lists of files behind links below data/; yields a line for each change.

    Raises:
        PipelineError: as `deciding_packages`.
    """
    installed = Registry.load(None)
    yield from (f"note: {each.message} (not loaded, so recorded for every kind)" for each in installed.broken)
    packages = deciding_packages(params, paths, installed)
    links = list(record_symlinks(paths.root / "data"))  # first: they may be unreadable, and then nothing is written
    if changes := environment_changes(paths.environment, packages):
        write_atomically(paths.environment, environment_yaml(packages))
        yield f"environment.yaml written ({'; '.join(changes)})"
    yield from links


def note_untracked(params: Params, paths: Paths) -> None:
    """Prints a note if DVC does not track the texts in data/raw."""
    remote = params.tokenize.corpus.options.get("files", {}).get("url")
    texts = not remote and paths.raw.is_dir() and not paths.raw.is_symlink() and any(paths.raw.iterdir())
    if texts and params.tokenize.corpus.name != "python_docs" and not paths.raw.with_suffix(".dvc").is_file():
        say("note: DVC does not track data/raw: run `dvc add data/raw`, or queued runs and clones will lack it")


def record_for_dvc(file: Path, paths: Paths) -> Iterator[str]:
    """As `record`, after `file` was written, if it is the params.yaml of a DVC project."""
    if file.resolve() == (paths.root / "params.yaml").resolve() and (paths.root / "dvc.yaml").is_file():
        yield from record(load_params(file), paths)
