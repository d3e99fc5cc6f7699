"""The process of a side: prepares it, then runs a round for each request line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from benchmarks.measure import ANSWER, measured, peak_memory


def main() -> None:
    """Reads requests and writes answers, one JSON object per line, until end of input."""
    asked = json.loads(sys.stdin.readline())
    module, _, function = asked["target"].partition(":")
    settings = asked["settings"]
    if "torch" in sys.modules:
        raise RuntimeError("torch must not be imported before a side needs it")
    work, facts = getattr(import_module(module), function)(**settings)
    _answer({"facts": facts})
    for line in sys.stdin:
        if json.loads(line)["do"] == "round":
            _answer(asdict(measured(work)))
        else:
            _answer({"bytes": peak_memory()})


def _answer(value: dict[str, object]) -> None:
    print(f"\n{ANSWER}{json.dumps(value)}", flush=True)


if __name__ == "__main__":
    main()
