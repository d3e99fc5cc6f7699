"""Commands answer quickly: nothing heavy is imported before it is needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, Project, Result


def imported(*arguments: str, cwd: object = None) -> set[str]:
    """The modules that a command imports."""
    code = (
        "import sys\n"
        "from pipeline.cli import cli\n"
        "from pipeline.command_line.process import exit_code\n"
        f"assert exit_code(cli, {list(arguments)!r}) == 0\n"
        "print('MODULES', *sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=str(cwd) if cwd else None
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.partition("MODULES")[2].split())


def test_help_imports_nothing_heavy() -> None:
    assert not imported("--help") & {
        "torch",
        "numpy",
        "pydantic",
        "tiktoken",
        "ruamel.yaml",
        "pluggy",
        "matplotlib",
    }


@pytest.mark.parametrize("stage", ["tokenize", "split"])
def test_tokenize_and_split_import_no_torch(project: Project, stage: str) -> None:
    settings = [part for value in TINY for part in ("--set", value)]
    if stage == "split":
        project.succeed("tokenize")
    assert "torch" not in imported(stage, *settings, cwd=project.root)


def test_wrong_usage_is_one_line_and_exit_code_2(project: Project) -> None:
    for arguments in (["nonsense"], ["train", "--nonsense"], ["generate"]):
        result: Result = project.call(arguments)
        assert result.code == 2
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["runs", "runs --watch", "clean"])
def test_outside_a_project_that_is_said(project: Project, command: str) -> None:
    (project.root / "params.yaml").unlink()
    result = project.run(*command.split(), tiny=False)
    assert result.code == 1
    assert "params.yaml is missing: run this in the project's folder" in result.err


@pytest.mark.parametrize("name", ["click", "tqdm"])
def test_a_python_without_the_packages_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", "runs"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"lacks the package {name}" in line
    assert ".venv/bin/activate" in line
