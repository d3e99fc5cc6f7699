"""What `pipeline plugins new` writes: a component that works, and its test; the texts lie in skeletons/."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.authoring.listing import find_kind
from pipeline.core.errors import PluginError
from pipeline.core.files import write_atomically
from pipeline.core.paths import Paths
from pipeline.plugin.components import Kind
from pipeline.plugin.registry import Registry

SKELETONS = Path(__file__).with_name("skeletons")
_OPTION = {
    "corpora": "min_characters=40",
    "models": "mlp_ratio=2",
    "losses": "ceiling=10.0",
    "optimizers": "lr=0.002",
    "schedules": "power=2.0",
    "batch_samplers": "short=200",
    "eval_callbacks": "smoothing=0.9",
    "samplers": "margin=3.0",
    "metrics": "nats=0.5",
    "exporters": "dtype=float16",
}
"""An option of each skeleton and another value for it."""


def write_skeleton(paths: Paths, word: str, name: str) -> Iterator[str]:
    """Writes plugins/KIND/NAME.py and tests/plugins/test_NAME.py; yields what was written and what to do next.

    Raises:
        PluginError: there is no such kind, the name cannot be used or is taken, or a file is in the way;
            nothing is written.
    """
    kind = find_kind(word)
    singular = kind.singular.replace(" ", "_")
    _check_name(name, kind)
    plugin = paths.plugins / kind.plural / f"{name}.py"
    test = paths.root / "tests" / "plugins" / f"test_{name}.py"
    texts = [(SKELETONS / f"{each}.py.txt").read_text(encoding="utf-8") for each in (singular, f"test_{singular}")]
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if keyword.iskeyword(class_name) or re.search(rf"\b{class_name}\b", texts[0]):
        raise PluginError(f"the class {class_name} would hide a name that its file needs: choose another name")
    _check_free(paths, kind, plugin, test)

    texts = [text.replace("my_component", name).replace("MyComponent", class_name) for text in texts]
    write_atomically(plugin, texts[0])
    try:
        write_atomically(test, texts[1])
    except OSError:
        plugin.unlink()  # both or neither
        raise
    yield from _next_steps(kind, name, paths.shown(plugin), paths.shown(test))


def _check_name(name: str, kind: Kind) -> None:
    example = f"such as my_{kind.singular.replace(' ', '_')}"
    if name.startswith("_"):
        raise PluginError(f"{name!r}: a file whose name starts with _ is no plugin: choose another name, {example}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise PluginError(f"{name!r} is no name for a component: use lower-case letters, digits and _, {example}")
    if keyword.iskeyword(name) or name in {"name", "use"}:
        where = "params.yaml" if name in {"name", "use"} else "Python"
        raise PluginError(f"{name!r} means something else in {where}: choose another name, {example}")


def _check_free(paths: Paths, kind: Kind, plugin: Path, test: Path) -> None:
    """Nothing is in the way: no file, no test of this name in any folder, no component of this name."""
    if not paths.plugins.is_dir():
        raise PluginError(f"{paths.plugins} is missing: run this in the project's folder")
    # pytest takes no two test files of one name, whatever their folders.
    tests = [test, *sorted((paths.root / "tests").rglob(test.name))]
    for path in (plugin, plugin.with_suffix(""), *tests):
        if os.path.lexists(path):
            raise PluginError(f"{paths.shown(path)} is already there: choose another name")
    for entry in Registry.load(paths.plugins, [kind.plural]).entries(kind.plural):
        if entry.component.name == plugin.stem:
            raise PluginError(
                f"the {kind.singular} {plugin.stem!r} is already there ({entry.source}): choose another name"
            )


def _next_steps(kind: Kind, name: str, plugin: str, test: str) -> Iterator[str]:
    key = kind.chosen_by
    section, _, last = key.rpartition(".")
    chosen, others = (f"{key}={name}", "") if last == "name" else (f"'{key}=[{name}]'", " (list others as well)")
    yield f"wrote {plugin} (it works as it is: make it yours)"
    yield f"wrote {test}"
    yield ""
    yield "Next:"
    yield f"  python -m pytest {test}    # `make setup` brings pytest"
    yield f"  git add {plugin} {test} && git commit"
    yield "      else experiments in a copy (--temp, --queue) do not see it; and `dvc exp show` lists only those"
    yield "      that began at the last commit"
    yield f"  dvc exp run -S {chosen} -S '+{section}.{name}.{_OPTION[kind.plural]}'"
    yield f"      chooses it{others}; + adds a key that params.yaml does not have yet"
    yield "  pipeline schema"
    yield f"      once its options are in params.yaml, under {section}.{name}, where -S finds them without +"
