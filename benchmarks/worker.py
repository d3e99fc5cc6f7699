"""The process of one side: prepares it, then does a round for each line that it reads."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from benchmarks.measure import ANSWER, measured, peak_memory


def main() -> None:
    """Reads requests and writes answers, each a line of JSON, until the input ends."""
    asked = json.loads(sys.stdin.readline())
    module, _, function = asked["target"].partition(":")
    settings = asked["settings"]
    if "torch" in sys.modules:
        raise RuntimeError("torch must not be there before a side asks for it")
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
