"""The examples for clusters and for GitHub, which nobody ran: their commands, options and forms are checked."""

from __future__ import annotations

import re
import shlex
import subprocess
from itertools import pairwise
from typing import Any

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML
from test_docs import PAGES

from pipeline.cli import cli
from pipeline.params.reader import load_params

TEXT = (REPOSITORY / "docs" / "scaling.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def documents() -> list[Any]:
    return [each for kind, block in BLOCKS if kind == "yaml" for each in YAML(typ="safe").load_all(block)]


def manifests() -> dict[str, Any]:
    """The manifests for Kubernetes, by kind."""
    return {each["kind"]: each for each in documents() if "apiVersion" in each}


def scripts() -> list[str]:
    """The shell scripts of the page: blocks, and the setup and run of SkyPilot."""
    sky = [each[name] for each in documents() for name in ("setup", "run") if name in each]
    return [block for kind, block in BLOCKS if kind in ("sh", "bash")] + sky


def command_lines() -> list[list[str]]:
    """The words of each command line, with those of the Job's container."""
    joined = "\n".join(scripts()).replace("\\\n", " ")
    lines = re.sub(r"\$\([^)]*\)", "HOST", joined).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    (container,) = manifests()["Job"]["spec"]["template"]["spec"]["containers"]
    return [*words, [*container["command"], *container["args"]]]


def lines_of_pages() -> list[str]:
    """The shell scripts of all pages, and those inside of their YAML."""
    pages = "\n".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", pages, flags=re.MULTILINE | re.DOTALL)
    (workflow,) = re.findall(r"^```yaml\n(name: results\n.*?)^```", pages, flags=re.MULTILINE | re.DOTALL)
    steps = YAML(typ="safe").load(workflow)["jobs"]["results"]["steps"]
    return [*scripts(), *blocks, *(step["run"] for step in steps if "run" in step)]


def test_every_script_is_valid_shell() -> None:
    for script in lines_of_pages():
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr


def test_no_script_lets_the_shell_split_a_value() -> None:
    """A folder's name may have a space: variables and outputs of commands are in double quotes, or assigned."""
    for script in lines_of_pages():
        for line in script.splitlines():
            bare = re.sub(r"""(^|\s)#.*|'[^']*'|"(\$\((?:"[^"]*"|[^)"])*\)|[^"])*"|^\s*\w+=\$\([^)]*\)""", "", line)
            assert not re.search(r"\$[\w({]", bare), line


def test_the_jobs_of_slurm_have_a_time_limit() -> None:
    jobs = [script for script in scripts() if "#SBATCH" in script]
    assert len(jobs) == 2
    assert all(re.search(r"^#SBATCH --time=\d+:\d\d:\d\d$", job, flags=re.MULTILINE) for job in jobs)


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
    assert len(lines) == 4
    for words in lines:
        numbers = [re.sub(r"\$\w+", "4", word) for word in words[1:]]
        found = get_args_parser().parse_args(numbers)
        assert (found.module, found.training_script) == (True, "pipeline")
        assert found.training_script_args[0] == "train"


def test_the_manifest_is_one_that_kubernetes_takes() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (22 MB) is not installed")
    for each in manifests().values():
        validator.validate(each, validator.latest_version(), strict=True)
    job = manifests()["Job"]
    with pytest.raises(validator.ValidationError):  # or this would find nothing
        validator.validate(
            {**job, "spec": {**job["spec"], "completion": 4}}, validator.latest_version(), strict=True
        )


def test_the_jobs_pods_find_the_first_one_through_the_service() -> None:
    service, job = manifests()["Service"], manifests()["Job"]
    pods, ports = job["spec"]["template"]["spec"], [each["port"] for each in service["spec"]["ports"]]
    name = service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pods["subdomain"] == name
    (endpoint,) = [each for each in pods["containers"][0]["args"] if each.startswith("--rdzv-endpoint")]
    assert endpoint == f"--rdzv-endpoint={job['metadata']['name']}-0.{name}:{ports[0]}"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4


def test_the_pods_share_the_claim_and_the_user() -> None:
    claim, files, job = (manifests()[kind] for kind in ("PersistentVolumeClaim", "Pod", "Job"))
    user = int(re.findall(r"^ARG UID=(\d+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)[0])
    for pod in (files["spec"], job["spec"]["template"]["spec"]):
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/project"
        assert {pod["securityContext"][name] for name in ("runAsUser", "fsGroup")} == {user}
