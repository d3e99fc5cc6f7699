"""What cases have in common, done once in the process of which they are forks: imports, and reading of what no case
changes. A case that changes a file has it read again."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import pickle
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.fuzz import project


def imported(names: Iterable[str]) -> None:
    """Imports the modules that the commands imported when the project was made."""
    for name in names:
        with suppress(Exception):  # one that its package makes while it is imported
            importlib.import_module(name)


def quicken() -> None:
    """Leaves out what costs most of the time: figures as files, xz at its slowest, most of the texts by which an
    export is verified, a new interpreter for `check`'s trial steps, and a search through all modules for each
    docstring."""
    from pipeline.commands import trial
    from pipeline.evaluate.report import page
    from pipeline.exporting import proof
    from pipeline.split import baseline

    texts = proof.awkward_texts(60)[-60:]
    vars(baseline)["_xz"] = lambda data: len(zlib.compress(data))
    vars(proof)["awkward_texts"] = lambda *_: texts
    vars(inspect)["getmodule"] = lambda what, file=None: sys.modules.get(
        getattr(what, "f_globals", {}).get("__name__") or getattr(what, "__module__", "")
    )
    vars(page)["write_figures"] = lambda *_: {}
    vars(trial)["get_context"] = lambda how: multiprocessing.get_context("fork")


def share(root: Path) -> None:
    """Reads the code, the templates, the settings and the plugins of the project at `root`, the place of all
    cases."""
    _share_code()
    _share_templates()
    _share_settings(root)
    _share_plugins(root)


def _share_code() -> None:
    """The imports of the package's files, which fingerprints follow."""
    from pipeline.command_line.stages import stage_names
    from pipeline.core import fingerprint, source

    package, files = project.REPOSITORY / "pipeline", source._files
    of_package = lru_cache(maxsize=None)(lambda folder, name: list(files(folder, name)))
    vars(metadata)["packages_distributions"] = lru_cache(metadata.packages_distributions)
    vars(source)["_files"] = lambda folder, name: (
        of_package(folder, name)
        if folder == project.REPOSITORY or folder.is_relative_to(package)
        else files(folder, name)
    )
    plugins = project.REPOSITORY / "plugins"
    for stage in stage_names():
        fingerprint.code_identity(f"pipeline.{stage}.stage", sorted(plugins.rglob("*.py")), plugins, {})


def _share_templates() -> None:
    """The compiled templates of the report."""
    from pipeline.evaluate.report import page

    for path in page.REPORT.glob("*.html.j2"):
        page._templates(page.REPORT, page.REPORT).get_template(path.name)


def _share_settings(root: Path) -> None:
    """The values of the project's YAML."""
    from pipeline.core import yaml

    known = {}
    for path in (*root.glob("*.yaml"), root / "dvc.lock"):
        text = path.read_text(encoding="utf-8")
        known[text] = pickle.dumps(yaml.yaml_values(text))

    class Known(yaml.YAML):  # type: ignore[misc] # the library has no types
        def load(self, stream: Any) -> Any:
            values = known.get(stream.getvalue())
            return pickle.loads(values) if values else super().load(stream)

    vars(yaml)["YAML"] = Known


def _share_plugins(root: Path) -> None:
    """The modules and components of the project's plugins."""
    from pipeline.plugin import registry
    from pipeline.plugin.components import KINDS

    import_file, components = registry._import_file, registry.registered_components
    modules: dict[Path, tuple[int, ModuleType]] = {}
    found = {}
    for kind in KINDS.values():
        for path in registry.plugin_files(root / "plugins" / kind.plural):
            module = import_file(path, kind.plural)
            modules[path] = (path.stat().st_ino, module)
            found[module, kind.plural] = list(components(module, [kind], kind))

    def import_once(path: Path, plural: str) -> ModuleType:
        inode, module = modules.get(path.absolute(), (0, None))
        if module is None or not path.is_file() or path.stat().st_ino != inode:
            return import_file(path, plural)
        sys.modules[module.__name__] = module
        return module

    def components_once(module: ModuleType, kinds: Any, folder: Any) -> Any:
        known = found.get((module, folder.plural)) if folder else None
        return components(module, kinds, folder) if known is None else known

    vars(registry)["_import_file"] = import_once
    vars(registry)["registered_components"] = components_once
