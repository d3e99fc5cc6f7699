import subprocess
import sys

PROGRAM = """
import gc
from pipeline.command_line.collector import collect_after_imports

before, found = gc.get_threshold(), []
gc.callbacks.append(lambda phase, info: found.append(phase))
collect_after_imports()
kept = [[] for _ in range(100_000)]
assert not found
more = [[] for _ in range(150_000)]
assert found and gc.get_freeze_count() > 200_000 and gc.get_threshold() == before

class Node: pass
import weakref
node = Node()
node.itself, seen = node, weakref.ref(node)
del node
gc.collect()
assert seen() is None and len(gc.callbacks) == 1
"""


def test_the_first_collection_is_late_and_the_next_ones_leave_out_what_was_there() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
