"""The examples of docs/scaling.md for clusters, which nobody ran: their commands, options and forms are checked."""

from __future__ import annotations

import re
import shlex
import subprocess
from itertools import pairwise
from typing import Any

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML

from pipeline.cli import cli
from pipeline.params.reader import load_params

TEXT = (REPOSITORY / "docs" / "scaling.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def documents() -> list[Any]:
    return [each for kind, block in BLOCKS if kind == "yaml" for each in YAML(typ="safe").load_all(block)]


def manifests() -> list[Any]:
    return [each for each in documents() if "apiVersion" in each]


def scripts() -> list[str]:
    """The shell scripts of the page: blocks, and the setup and run of SkyPilot."""
    sky = [each[name] for each in documents() for name in ("setup", "run") if name in each]
    return [block for kind, block in BLOCKS if kind in ("sh", "bash")] + sky


def command_lines() -> list[list[str]]:
    """The words of each command line, with those of the Job's container."""
    joined = "\n".join(scripts()).replace("\\\n", " ")
    lines = re.sub(r"\$\([^)]*\)", "HOST", joined).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    containers = [
        each["spec"]["template"]["spec"]["containers"][0] for each in manifests() if each["kind"] == "Job"
    ]
    return words + [[*each["command"], *each["args"]] for each in containers]


def test_every_script_is_valid_shell() -> None:
    for script in scripts():
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr


def test_the_examples_call_commands_and_params_that_exist() -> None:
    called = [
        (words[number + 1], words[number + 2 :])
        for words in command_lines()
        for number, word in enumerate(words[:-1])
        if word == "pipeline"
    ]
    assert len(called) >= 5
    for name, options in called:
        assert name in cli.commands, name
        settings = [value for option, value in pairwise(options) if option == "--set"]
        load_params(REPOSITORY / "params.yaml", settings)
    (runtime,) = [each["runtime"] for each in documents() if "strategy" in each.get("runtime", {})]
    load_params(REPOSITORY / "params.yaml", [f"runtime.{name}={value}" for name, value in runtime.items()])


def test_the_lines_of_torchrun_have_options_that_it_knows() -> None:
    from torch.distributed.run import get_args_parser

    lines = [words for words in command_lines() if words[:1] == ["torchrun"]]
    assert len(lines) == 3
    for words in lines:
        numbers = [re.sub(r"\$\w+", "4", word) for word in words[1:]]
        found = get_args_parser().parse_args(numbers)
        assert (found.module, found.training_script, found.training_script_args) == (True, "pipeline", ["train"])


def test_the_manifest_is_one_that_kubernetes_takes() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (22 MB) is not installed")
    service, job = manifests()
    for each in (service, job):
        validator.validate(each, validator.latest_version(), strict=True)
    with pytest.raises(validator.ValidationError):  # or this would find nothing
        validator.validate(
            {**job, "spec": {**job["spec"], "completion": 4}}, validator.latest_version(), strict=True
        )


def test_the_jobs_pods_find_the_first_one_through_the_service() -> None:
    service, job = manifests()
    pods, ports = job["spec"]["template"]["spec"], [each["port"] for each in service["spec"]["ports"]]
    name = service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pods["subdomain"] == name
    (endpoint,) = [each for each in pods["containers"][0]["args"] if each.startswith("--rdzv-endpoint")]
    assert endpoint == f"--rdzv-endpoint={job['metadata']['name']}-0.{name}:{ports[0]}"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
