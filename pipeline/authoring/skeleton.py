"""`pipeline plugins new`: writes a working component and its test from the templates in skeletons/."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.authoring.listing import find_kind, plain_word
from pipeline.core.errors import PluginError
from pipeline.core.files import write_atomically
from pipeline.core.paths import Paths
from pipeline.plugin.components import KINDS, Kind
from pipeline.plugin.registry import Registry

SKELETONS = Path(__file__).with_name("skeletons")
VARIANTS = {"task_metric": "metrics", "step_callback": "eval_callbacks", "distillation_loss": "losses"}
"""Further skeletons of a kind, by name."""
_OPTION = {
    "corpus": "min_characters=40",
    "model": "mlp_ratio=2",
    "loss": "ceiling=10.0",
    "distillation_loss": "share=0.2",
    "optimizer": "lr=0.002",
    "schedule": "power=2.0",
    "batch_sampler": "short=200",
    "eval_callback": "smoothing=0.9",
    "step_callback": "variance=0.01",
    "sampler": "margin=3.0",
    "metric": "nats=0.5",
    "task_metric": "max_new_tokens=20",
    "exporter": "dtype=float16",
}
"""An option of each skeleton with a value other than its default."""
_FIRST = {
    "corpus": "put .txt files into data/raw, then `dvc add data/raw`",
    "distillation_loss": (
        "mkdir -p data/weights && cp -r artifacts/checkpoint data/weights/teacher && dvc add data/weights/teacher"
    ),
}
"""What the experiment needs beside the skeleton."""
_TARGET = {"model": " evaluate"}
"""The stage with which the experiment ends, if not the last: exporters support the shipped models only."""


def write_skeleton(paths: Paths, word: str, name: str) -> Iterator[str]:
    """Writes plugins/KIND/NAME.py and tests/plugins/test_NAME.py (test_KIND_NAME.py if there is a test_NAME.py);
    yields the lines to print.

    Raises:
        PluginError: there is no such kind, the name is invalid or in use, or a file exists. Nothing is written.
    """
    skeleton, kind = _find(word)
    _check_name(name, kind)
    plugin = paths.plugins / kind.plural / f"{name}.py"
    test = _test_file(paths, kind, name)
    texts = [(SKELETONS / f"{each}.py.txt").read_text(encoding="utf-8") for each in (skeleton, f"test_{skeleton}")]
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if keyword.iskeyword(class_name) or re.search(rf"\b{class_name}\b", texts[0]):
        raise PluginError(f"the class name {class_name} conflicts with a name in the file: choose another name")
    _check_free(paths, kind, name, (plugin, plugin.with_suffix(""), test))

    texts = [text.replace("my_component", name).replace("MyComponent", class_name) for text in texts]
    write_atomically(plugin, texts[0])
    try:
        write_atomically(test, texts[1])
    except OSError:
        plugin.unlink()  # both or neither
        raise
    yield from _next_steps(skeleton, kind, name, paths.shown(plugin), paths.shown(test))


def _find(word: str) -> tuple[str, Kind]:
    """The name of a skeleton, and the kind of what it creates."""
    variant = plain_word(word)
    if variant in VARIANTS:
        return variant, KINDS[VARIANTS[variant]]
    kind = find_kind(word)
    return plain_word(kind.singular), kind


def _check_name(name: str, kind: Kind) -> None:
    example = f"such as my_{kind.singular.replace(' ', '_')}"
    if name.startswith("_"):
        raise PluginError(
            f"{name!r}: files whose names start with _ are not plugins: choose another name, {example}"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise PluginError(
            f"{name!r} is not a valid component name: use lower-case letters, digits and _, {example}"
        )
    if keyword.iskeyword(name) or name in {"name", "use"}:
        where = "params.yaml" if name in {"name", "use"} else "Python"
        raise PluginError(f"{name!r} is a reserved word in {where}: choose another name, {example}")


def _test_file(paths: Paths, kind: Kind, name: str) -> Path:
    """The file of the test. pytest does not allow two test files with the same name, even in different folders.

    Raises:
        PluginError: both names are in use.
    """
    tests, found = paths.root / "tests", list[Path]()
    for file in (f"test_{name}.py", f"test_{plain_word(kind.singular)}_{name}.py"):
        found = sorted(tests.rglob(file))
        if not found:
            return tests / "plugins" / file
    raise PluginError(f"{paths.shown(found[0])} already exists: choose another name")


def _check_free(paths: Paths, kind: Kind, name: str, files: Iterable[Path]) -> None:
    """Raises PluginError if one of the files, or a component of this name exists."""
    if not paths.plugins.is_dir():
        raise PluginError(f"{paths.plugins} is missing: run this in the folder of the project")
    for path in files:
        if os.path.lexists(path):
            raise PluginError(f"{paths.shown(path)} already exists: choose another name")
    for entry in Registry.load(paths.plugins, [kind.plural]).entries(kind.plural):
        if entry.component.name == name:
            raise PluginError(f"the {kind.singular} {name!r} already exists ({entry.source}): choose another name")


def _next_steps(skeleton: str, kind: Kind, name: str, plugin: str, test: str) -> Iterator[str]:
    key = kind.chosen_by
    section, _, last = key.rpartition(".")
    chosen, others = (
        (f"{key}={name}", "") if last == "name" else (f"'{key}=[{name}]'", " (list the other ones as well)")
    )
    yield f"wrote {plugin} (a working example: adapt it)"
    yield f"wrote {test} (its contract test stays: replace the fact at its end)"
    yield ""
    yield "Next:"
    yield f"  pipeline plugins check {plugin}"
    yield f"  python -m pytest {test}"
    yield "      `make setup` installs pytest"
    yield f"  git add {plugin} {test}"
    yield "      experiments in a copy (--temp, --queue) contain only what git tracks"
    if first := _FIRST.get(skeleton):
        yield f"  {first}"
    yield f"  dvc exp run --temp{_TARGET.get(skeleton, '')} -S {chosen} -S '+{section}.{name}.{_OPTION[skeleton]}'"
    yield f"      uses it{others}; + adds a key that is not in params.yaml yet"
    if skeleton in _TARGET:
        yield f"      ends with{_TARGET[skeleton]}: for all stages, add -S 'export.formats.use=[]' (no exports)"
    yield "  pipeline schema"
    yield f"      after you add its options to params.yaml, under {section}.{name} (then -S needs no +)"
