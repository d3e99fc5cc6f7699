"""Runs that compile nothing do without torch's compiler, whose import takes a second."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, torch
from pipeline.model.optimizers import use_plain_optimizers
from pipeline.plugin.registry import Registry
import pathlib
import pipeline.train.stage, pipeline.evaluate.stage, pipeline.export.stage, pipeline.commands.generate

use_plain_optimizers()
use_plain_optimizers()  # once more changes nothing

def steps(make, count):
    torch.manual_seed(1)
    weight, bias = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))
    optimizer = make([("mlp.weight", weight), ("mlp.bias", bias)])
    for step in range(count):
        optimizer.zero_grad()
        (weight + bias).square().sum().backward()
        assert not optimizer.step() and torch.is_grad_enabled()
        optimizer.load_state_dict(optimizer.state_dict())
    return weight.detach()

registry = Registry.load(pathlib.Path("plugins"), ["optimizers"])
makes = [registry.build("optimizers", name, {}, "here").build for name in registry.names("optimizers")]
before = [steps(make, 3) for make in makes]
assert not any(name in sys.modules for name in ("torch._dynamo", "sympy")), "imported"

doubled = torch.compile(lambda x: x * 2, backend="eager", fullgraph=True)
assert torch.equal(doubled(torch.ones(2)), torch.full((2,), 2.0)) and "torch._dynamo" in sys.modules
after = [steps(make, 3) for make in makes]  # now through torch's wrappers
assert len(makes) > 4 and all(map(torch.equal, before, after))

weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.Adam([weight])
weight.grad = torch.ones(3)
torch.compile(optimizer.step, backend="eager")()
assert not torch.equal(weight, torch.ones(3))
print("done")
"""


def test_the_shipped_optimizers_step_the_same_without_the_compiler():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
