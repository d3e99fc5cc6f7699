"""Commands answer quickly: nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest
from conftest import TINY, Project, Result


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
