"""A small set for classification: does the first paragraph of a docstring describe a class or a function?

`python -m benchmarks.labels` writes labels.jsonl into data/raw/train, val and test of the current project: as many
functions as classes of the standard library, with the modules held out that the default run holds out.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from pathlib import Path

from pipeline.plugin import split_of

_SHORTEST, _LONGEST = 20, 300
_SPLITS = ("train", "val", "test")


def labelled() -> dict[str, list[tuple[str, str]]]:
    """For each label, the split and the text of each example."""
    library = Path(sysconfig.get_path("stdlib"))
    seen, found = set[str](), {"class": list[tuple[str, str]](), "function": list[tuple[str, str]]()}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if "packages" in name or "test" in name:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if _SHORTEST <= len(text) <= _LONGEST and text not in seen:
                    seen.add(text)
                    label = "class" if isinstance(node, ast.ClassDef) else "function"
                    found[label].append((split_of(f"library/{name}", 2, 0.05, 0.05), text))
    classes, functions = len(found["class"]), len(found["function"])
    found["function"] = [found["function"][number * functions // classes] for number in range(classes)]
    return found


def main() -> None:
    """Writes the files."""
    lines: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for label, examples in labelled().items():
        for split, text in examples:
            record = {"prompt": f"Class or function?\n\n{text}", "completion": label}
            lines[split].append(json.dumps(record) + "\n")
    for split, each in lines.items():
        folder = Path("data", "raw", split)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.jsonl").write_text("".join(each))


if __name__ == "__main__":
    main()
