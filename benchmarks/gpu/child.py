"""The process of a part: calls its function and prints what it found, as JSON in the last line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from benchmarks.gpu.part import outcome

if __name__ == "__main__":
    print("\n" + json.dumps(asdict(outcome(sys.argv[1], json.loads(sys.argv[2])))), flush=True)
