"""What the tests share: a tiny project in a temporary folder, and the command line run in this process."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic._internal import _fields as pydantic_fields
from ruamel.yaml import YAML

from pipeline.cli import cli
from pipeline.command_line.process import exit_code
from pipeline.core import yaml
from pipeline.evaluate.report.figures import write_figures
from pipeline.evaluate.report.plots import Plot
from pipeline.plugin.bytelevel import awkward_texts

if TYPE_CHECKING:
    from test_dvc import Clone

# Nothing that a test runs believes it is inside a DVC stage.
for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME"):
    os.environ.pop(name, None)

# Tests run beside each other: one thread each. Some count memory, and each thread has scratch of its own.
os.environ["OMP_NUM_THREADS"] = "1"


# What is pure and slow, the tests compute once: each command reads params.yaml and some plugins.

packages_distributions = metadata.packages_distributions


@lru_cache
def _owners(folders: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    return packages_distributions()


def owners() -> Mapping[str, list[str]]:
    """`packages_distributions`, which reads the metadata of every package, once for the same sys.path."""
    return _owners(tuple((path, os.stat(path).st_mtime_ns) for path in sys.path if os.path.isdir(path)))


# Each train, evaluate and export asks for it.
metadata.packages_distributions = owners


@lru_cache(1000)
def parsed(text: str, parse: Callable[[str], Any] = yaml.yaml_values) -> Any:
    return parse(text)


# pipeline.params.reader and others take it from there, and are imported after this.
yaml.yaml_values = lambda text: deepcopy(parsed(text))

extract_docstrings = pydantic_fields.extract_docstrings_from_cls
docstrings: dict[tuple[bytes, str], dict[str, str]] = {}


def known_docstrings(cls: type, use_inspect: bool = False) -> dict[str, str]:
    """What the fields of a plugin's class say of themselves; plugins are imported anew in each project."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if not file or not cls.__module__.startswith("plugins."):
        return extract_docstrings(cls, use_inspect)
    key = Path(file).read_bytes(), cls.__qualname__
    if key not in docstrings:
        docstrings[key] = extract_docstrings(cls, use_inspect)
    return docstrings[key]


pydantic_fields.extract_docstrings_from_cls = known_docstrings

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES: list[str] = list(YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"])

TINY = (
    "tokenize.corpus.name=files",
    "tokenize.tokenizer.bpe.vocab_size=320",
    "split.val=0.2",
    "split.test=0.2",
    "model.name=gpt2",
    "model.context_length=16",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.emb_dim=16",
    "model.dropout=0",
    "train.budget.amount=6",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.grad_clip=1.0",
    "train.schedule.name=cosine",
    "train.schedule.warmup_steps=2",
    "train.schedule.cosine.final=0.05",
    "train.optimizer.name=adamw",
    "train.evaluation.every=3",
    "train.evaluation.windows=4",
    "train.eval_callbacks.sample_text.max_new_tokens=4",
    "evaluate.batch_size=4",
    "evaluate.generation.max_new_tokens=8",
    "evaluate.generation.prompts=[the]",
    "runtime.threads=1",
)
"""Settings that make every stage take a moment."""
TAKING_SET = {name for name, each in cli.commands.items() if any("--set" in param.opts for param in each.params)}


@dataclass(frozen=True)
class Result:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A project in a temporary folder: params.yaml, the shipped plugins, and texts under data/raw."""

    root: Path
    call: Callable[[Sequence[str]], Result]

    def run(self, *arguments: str, tiny: bool = True) -> Result:
        """Runs `pipeline ARGUMENTS` in the project, with the tiny settings for commands that take `--set`."""
        settings = []
        if tiny and arguments[0] in TAKING_SET:
            settings = [part for value in TINY for part in ("--set", value)]
        return self.call([arguments[0], *settings, *arguments[1:]])

    def succeed(self, *arguments: str) -> Result:
        """Runs a command that must succeed."""
        result = self.run(*arguments)
        assert result.code == 0, result.err
        return result


def made_up_text(seed: int, count: int) -> str:
    """Text of made-up words: enough structure to learn something from."""
    generator = random.Random(seed)
    vocabulary = ["the", "river", "runs", "to", "a", "sea", "of", "light", "and", "stone", "we", "listen"]
    lines, line = [], []
    for _ in range(count):
        line.append(generator.choice(vocabulary))
        if generator.random() < 0.15:
            lines.append(" ".join(line) + ".")
            line = []
    return "\n".join([*lines, " ".join(line)]) + "\n"


def start_fork_server() -> None:
    """Starts the server of the start method "forkserver". Its children need no 4 seconds for their imports."""
    multiprocessing.set_forkserver_preload(
        ["torch._dynamo", "torch.distributed.fsdp", "pipeline.commands.trial", "test_distributed"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


@pytest.fixture
def project(
    few_texts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Project:
    """A fresh tiny project, and the current folder in it."""
    root = tmp_path / "project"
    make_project(root)
    monkeypatch.chdir(root)
    # tests/evaluate/test_report.py draws all of them.
    monkeypatch.setattr("pipeline.evaluate.report.page.write_figures", write_first_figure)

    def call(arguments: Sequence[str]) -> Result:
        capfd.readouterr()
        code = exit_code(cli, list(arguments))
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return Project(root, call)


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are proven with an eighth of the texts."""
    monkeypatch.setattr("pipeline.exporting.proof.awkward_texts", few_awkward_texts)


@pytest.fixture
def all_texts(few_texts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are proven with all texts, which takes seconds: where a test is about the tokenizer."""
    monkeypatch.setattr("pipeline.exporting.proof.awkward_texts", awkward_texts)


@lru_cache
def few_awkward_texts(strings: int) -> list[str]:
    """Every eighth text that proves an export."""
    return awkward_texts(strings)[::8]


def write_first_figure(plots: list[Plot], folder: Path) -> None:
    """Writes one of the report's figures: each takes a tenth of a second."""
    write_figures(plots[:1], folder)


def make_project(root: Path) -> None:
    """Lays out the tiny project's files."""
    root.mkdir(parents=True)
    shutil.copy(REPOSITORY / "params.yaml", root)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "plugins", root / "plugins", ignore=ignore)
    raw = root / "data" / "raw"
    raw.mkdir(parents=True)
    for number in range(12):
        (raw / f"text-{number:02}.txt").write_text(made_up_text(number, 300), encoding="utf-8")
    tasks = root / "data" / "tasks"
    tasks.mkdir()
    question = '{"prompt": "the river", "options": [" runs", " listens"], "answer": 0}\n'
    (tasks / "choices.jsonl").write_text(question, encoding="utf-8")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` that `make` fills: the first worker of pytest-xdist that asks makes it for all."""
    temporary = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        temporary = temporary.parent
    folder, done = temporary / name, temporary / f"{name}.done"
    with (temporary / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project in which tokenize, split and train have run; copy it before changing it."""
    from pipeline.core.paths import Paths
    from pipeline.params.reader import load_params
    from pipeline.split import stage as split
    from pipeline.tokenize import stage as tokenize
    from pipeline.train import stage as train

    def make(root: Path) -> None:
        make_project(root)
        params = load_params(root / "params.yaml", TINY)
        for stage in (tokenize, split, train):
            stage.run(params, Paths(root))

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture
def trained_project(project: Project, trained: Path) -> Project:
    """A fresh project whose tokenize, split and train have run."""
    shutil.copytree(trained, project.root, dirs_exist_ok=True)
    return project


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone, with the README's loss, whose first run is done and not committed; copy it before changing it."""
    from test_docs import README, blocks
    from test_dvc import Clone

    def make(root: Path) -> None:
        clone = Clone(root)
        # The optimizer is the shipped one, whose rate the pages change; exports have tests of their own.
        clone.set_params("train.optimizer.name=muon", "export.formats.use=[]")
        clone.commit("the shipped optimizer")
        (loss,) = [code for code in blocks(README, "python") if "register_losses" in code]
        (root / "plugins" / "losses" / "steep.py").write_text(loss)
        for name in ("README.md", "CONTRIBUTING.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, root)
        (root / "prompts.txt").write_text("the river\nwe listen\n")
        assert clone.repro() == STAGES

    return Clone.at(made_once(tmp_path_factory, "first_run", make))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of larger test data that PIPELINE_TEST_DATA names; a test that needs it is skipped without."""
    folder = os.environ.get("PIPELINE_TEST_DATA")
    if not folder:
        pytest.skip("PIPELINE_TEST_DATA does not name the folder of test data")
    return Path(folder)


@pytest.fixture(scope="session")
def interrupted_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project whose run died in its step 4, having saved after each step; copy it before changing it."""
    from pipeline.core.paths import Paths
    from pipeline.params.reader import load_params
    from pipeline.train import loop
    from pipeline.train import stage as train

    root = tmp_path_factory.mktemp("interrupted") / "project"
    make_project(root)
    for output in ("tokens", "splits"):
        shutil.copytree(trained / "artifacts" / output, root / "artifacts" / output)
    whole = loop.take_step

    def dies(run: Any, state: Any, pending: Any) -> None:
        if state.step == 4:
            raise KeyboardInterrupt
        whole(run, state, pending)

    params = load_params(root / "params.yaml", [*TINY, "runtime.save_seconds=0"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train.run(params, Paths(root))
    return root


@pytest.fixture
def interrupted(project: Project, interrupted_run: Path) -> Project:
    """A fresh project whose run died in its step 4, having saved after each step."""
    shutil.copytree(interrupted_run, project.root, dirs_exist_ok=True)
    return project


Tell = Callable[[str, int, int, int], None]


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """`tell(fault, tries, recovered, equal)` adds a row to the table of faults; all three numbers must be equal."""

    def row(fault: str, tries: int, recovered: int, equal: int) -> None:
        request.node.user_properties.append(("fault", (fault, tries, recovered, equal)))
        assert (recovered, equal) == (tries, tries), fault

    return row


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked `long` is another case of something that `make test` tries: it is left to `--long`."""
    left = [item for item in items if item.get_closest_marker("long") and not config.option.long]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: (item.path.name != "test_workflow.py", item.get_closest_marker("faults") is None))
    # The slow ones are first: a worker that begins one last would keep the others waiting.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="faults: many tries of each, as `make test-faults` does")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The faults that were tried, with `--long`; the bad inputs that were tried, with `-v`."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    faults = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if faults and config.option.long:
        terminalreporter.section("faults")
        for columns in [("fault", "tries", "recovered", "bitwise equal"), *dict.fromkeys(faults)]:
            terminalreporter.write_line("{:<74}{:>7}{:>11}{:>15}".format(*columns))
    if config.option.verbose < 0:  # pyproject.toml says -q, which -v takes back
        return
    tried = [
        value
        for report in reports
        for name, value in report.user_properties
        if name == "bad input" and report.when == "call"
    ]
    if tried:
        terminalreporter.section(f"{len(tried)} bad inputs: case | exit code | message")
        for case, code, message in tried:
            terminalreporter.write_line(f"{case} | {code} | {message}")
