"""Training steps on a CUDA device without a GPU: no tensor is on another device, and the host reads no value."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The cases of fake_cuda_step.py that failed, with their errors."""
    if torch.version.cuda or sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("it needs torch's build for the CPU, Linux and g++")
    library, folder = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so", Path(torch.__file__).parent
    command = [
        "g++",
        "-std=c++20",
        "-shared",
        "-fPIC",
        f"-I{folder}/include",
        HERE / "fake_cuda.cpp",
        "-o",
        library,
    ]
    libraries = [f"-L{folder}/lib", f"-Wl,-rpath,{folder}/lib", "-lc10", "-ltorch_cpu"]
    built = subprocess.run([*command, *libraries], capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"g++ does not build with this version of torch: {built.stderr[-300:]}")
    paths = os.pathsep.join(str(REPOSITORY / each) for each in (".", "tests", "tests/train"))
    done = subprocess.run(
        [sys.executable, HERE / "fake_cuda_step.py"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_it_would_find_a_tensor_of_another_device_and_a_value_that_is_read(failures: dict[str, str]) -> None:
    assert "cuda:0 and cpu" in failures["mixed devices"]
    assert "DataDependentOutput" in failures["value read"]


def test_steps_and_generation_on_cuda_mix_no_devices_and_read_no_value(failures: dict[str, str]) -> None:
    assert failures.keys() == {"mixed devices", "value read"}, failures
