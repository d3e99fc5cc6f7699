"""`pipeline plugins`: lists and explains components, creates working ones, and checks plugin files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from conftest import REPOSITORY, Project
from ruamel.yaml import YAML

from pipeline.authoring.skeleton import VARIANTS
from pipeline.plugin import hookspecs
from pipeline.plugin.components import KINDS
from pipeline.plugin.registry import Registry, plugin_files

SKELETONS = {kind.singular.replace(" ", "_"): kind.plural for kind in KINDS.values()} | VARIANTS
"""The kind of each skeleton. The tests create `my_SKELETON` from it."""


def python(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=project.root, text=True, capture_output=True, check=False
    )


def files(project: Project) -> set[Path]:
    return {path for path in project.root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


# ── list and show ─────────────────────────────────────────────────────────────────────────────────


def test_without_a_command_every_component_is_listed(project: Project) -> None:
    listed = project.succeed("plugins")
    assert listed == project.succeed("plugins", "list")
    assert all(f"{plural} (plugins/{plural}/)" in listed.out for plural in KINDS)


@pytest.mark.parametrize("word", ["eval_callbacks", "eval-callbacks", "eval_callback", "Eval callback"])
def test_a_kind_may_be_written_as_one_likes_and_needs_no_list_before_it(project: Project, word: str) -> None:
    listed = project.succeed("plugins", word)
    assert listed == project.succeed("plugins", "list", "eval_callbacks")
    assert "early_stopping" in listed.out
    assert "top_k" not in listed.out


def test_an_unknown_word_is_wrong_usage_and_says_which_there_are(project: Project) -> None:
    result = project.run("plugins", "nonsense")
    assert result.code == 2
    assert result.err.count("\n") == 1
    for word in ("nonsense", "list", "show", "new", "check", *KINDS):
        assert word in result.err
    assert project.run("plugins", "list", "nonsense").code == 1


def test_show_explains_every_option_of_every_shipped_component(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.load(project.root / "plugins")
    monkeypatch.setattr("pipeline.authoring.listing.Registry.load", lambda plugins: registry)
    for kind, entry in [(each, entry) for each in KINDS.values() for entry in registry.entries(each.plural)]:
        out = project.succeed("plugins", "show", entry.component.name).out
        words = " ".join(out.split())
        assert f"{kind.singular} {entry.component.name} · {entry.source}" in words
        assert kind.chosen_by in out
        assert " ".join(str(entry.component.__doc__).split()) in words
        for option, field in entry.component.model_fields.items():
            assert f"  {option}: " in out
            assert field.description, f"{entry.component.name}.{option} has no description"
            assert " ".join(field.description.split()) in words


def test_the_hooks_say_where_params_yaml_chooses_each_kind() -> None:
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    for kind in KINDS.values():
        *place, choice = kind.chosen_by.split(".")
        assert choice in reduce(getitem, place, params)
        assert f"`{kind.chosen_by}`" in getattr(hookspecs, kind.hook).__doc__


def test_show_tells_type_bounds_default_and_choice(project: Project) -> None:
    (project.root / "plugins" / "samplers" / "many.py").write_text(
        "from typing import Annotated, ClassVar, Literal\n"
        "from pydantic import Field\n"
        "from pipeline.plugin import Sampler, hookimpl\n\n"
        "class Many(Sampler):\n"
        '    """All kinds of options.\n\n    In two paragraphs.\n    """\n'
        '    name: ClassVar[str] = "many"\n'
        "    share: Annotated[float, Field(ge=0, lt=1)] = 0.5\n"
        "    count: Annotated[int, Field(gt=0, le=9)] | None = None\n"
        '    unit: Literal["token", "word"] = "token"\n'
        '    words: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("é",)\n'
        "    weights: dict[str, float] = {}\n"
        "    loud: bool = False\n\n"
        "    def __call__(self, logits, tokens):\n"
        "        return logits\n\n"
        "@hookimpl\n"
        "def register_samplers():\n"
        "    return [Many]\n"
    )
    assert project.succeed("plugins", "show", "many").out.splitlines() == [
        "sampler many  ·  plugins/samplers/many.py",
        "params.yaml: evaluate.samplers.use: [many]",
        "",
        "  All kinds of options.",
        "",
        "  In two paragraphs.",
        "",
        "options, under evaluate.samplers.many:",
        "  share: a number ≥ 0 and < 1; default 0.5",
        "  count: a whole number > 0 and ≤ 9 or null; default null",
        '  unit: "token" or "word"; default "token"',
        '  words: a list of at least 1, each text; default ["é"]',
        "  weights: a section of keys, each a number; default {}",
        "  loud: true or false; default false",
    ]


def test_a_name_of_two_kinds_is_shown_for_both(project: Project) -> None:
    project.succeed("plugins", "new", "loss", "twice")
    assert "wrote tests/plugins/test_sampler_twice.py" in project.succeed("plugins", "new", "sampler", "twice").out
    out = project.succeed("plugins", "show", "twice").out
    assert "loss twice" in out
    assert "sampler twice" in out


def test_show_suggests_a_name(project: Project) -> None:
    result = project.run("plugins", "show", "fokal")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "did you mean 'focal'?" in result.err
    assert "losses: cross_entropy, focal;" in result.err


# ── new ───────────────────────────────────────────────────────────────────────────────────────────


def write_all(project: Project) -> None:
    for skeleton, plural in SKELETONS.items():
        out = project.succeed("plugins", "new", skeleton.replace("_", " "), f"my_{skeleton}").out
        assert f"wrote plugins/{plural}/my_{skeleton}.py" in out
        assert f"wrote tests/plugins/test_my_{skeleton}.py" in out


def test_what_new_writes_passes_its_own_test_and_the_linter_and_is_listed(project: Project) -> None:
    write_all(project)
    tested = python(project, "-m", "pytest", "-p", "no:cacheprovider", "tests")
    assert tested.returncode == 0, tested.stdout
    written = [*(f"plugins/{plural}/my_{skeleton}.py" for skeleton, plural in SKELETONS.items()), "tests"]
    settings = ("--no-cache", "--config", str(REPOSITORY / "pyproject.toml"))
    first_party = ("--config", "lint.isort.known-first-party = ['pipeline']")
    linted = python(project, "-m", "ruff", "check", *settings, *first_party, *written)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    formatted = python(project, "-m", "ruff", "format", "--diff", *settings, *written)
    assert formatted.returncode == 0, formatted.stdout + formatted.stderr

    listed = project.succeed("plugins").out
    project.succeed("schema")
    schema = json.dumps(json.loads((project.root / "params.schema.json").read_text()))
    for skeleton, plural in SKELETONS.items():
        assert f"  my_{skeleton}  ·  plugins/{plural}/my_{skeleton}.py" in listed
        assert f'"my_{skeleton}": {{' in schema
        project.succeed("plugins", "check", f"plugins/{plural}/my_{skeleton}.py")


def test_what_new_writes_works_when_it_is_chosen(trained_project: Project) -> None:
    write_all(trained_project)

    def chosen(*settings: str) -> list[str]:
        return [part for each in settings for part in ("--set", each)]

    trained = trained_project.succeed(
        "train",
        *chosen("train.loss.name=my_loss", "train.loss.my_loss.ceiling=10.0"),
        *chosen("train.optimizer.name=my_optimizer", "train.optimizer.my_optimizer.lr=0.002"),
        *chosen("train.eval_callbacks.use=[my_eval_callback,my_step_callback]", "train.log_every=1"),
    )
    assert "my_loss and my_optimizer" in trained.out
    assert "my_eval_callback_gap" in (trained_project.root / "metrics" / "history.tsv").read_text()
    assert "my_step_callback_deviation" in (trained_project.root / "metrics" / "steps.tsv").read_text()
    trained_project.succeed("evaluate", *chosen("evaluate.metrics.use=[my_metric,my_task_metric]"))
    evaluated = json.loads((trained_project.root / "metrics" / "evaluate.json").read_text())
    assert {"my_metric", "my_task_metric"} <= evaluated["val"].keys() | evaluated["tasks"].keys()
    trained_project.succeed("generate", "the", "--sampler", "my_sampler")
    exported = chosen("export.formats.use=[my_exporter]", "export.formats.my_exporter.dtype=float16")
    trained_project.succeed("export", *exported)
    assert (trained_project.root / "artifacts" / "export" / "weights.safetensors").is_file()
    shutil.copytree(
        trained_project.root / "artifacts" / "checkpoint", trained_project.root / "data/weights/teacher"
    )
    taught = trained_project.succeed("train", *chosen("train.loss.name=my_distillation_loss"))
    assert "my_distillation_loss" in taught.out
    trained_project.succeed("tokenize", "--set", "tokenize.corpus.name=my_corpus")


def test_the_options_that_the_next_steps_set_are_there(project: Project) -> None:
    for skeleton in SKELETONS:
        out = project.succeed("plugins", "new", skeleton.replace("_", "-"), f"my_{skeleton}").out
        (setting,) = [word.strip("'+") for word in out.split() if word.startswith("'+")]
        option = setting.partition("=")[0].rpartition(".")[2]
        assert f"  {option}: " in project.succeed("plugins", "show", f"my_{skeleton}").out
        for step in (
            "plugins check plugins/",
            "git add plugins/",
            "exp run --temp",
            f"-S '+{setting}'",
            f"pytest tests/plugins/test_my_{skeleton}.py",
            "make setup",
            "pipeline schema",
        ):
            assert step in out


def test_the_next_steps_of_a_model_end_before_the_exports_which_refuse_it(trained_project: Project) -> None:
    out = trained_project.succeed("plugins", "new", "model", "mine").out
    assert "dvc exp run --temp evaluate -S model.name=mine" in out
    trained_project.succeed("train", "--set", "model.name=mine")
    trained_project.succeed("evaluate")
    assert "'mine'" in trained_project.run("export").err
    assert "-S 'export.formats.use=[]'" in out
    trained_project.succeed("export", "--set", "export.formats.use=[]")


@pytest.mark.parametrize(
    ("skeleton", "folder"), [("corpus", "data/raw"), ("distillation_loss", "data/weights/teacher")]
)
def test_the_next_steps_make_what_the_experiment_reads(project: Project, skeleton: str, folder: str) -> None:
    before, command, _ = project.succeed("plugins", "new", skeleton, "mine").out.partition("dvc exp run")
    assert command
    assert f"dvc add {folder}" in before


def test_the_contract_test_survives_a_renamed_option(project: Project) -> None:
    write_all(project)
    for skeleton, plural in SKELETONS.items():
        test = (project.root / "tests" / "plugins" / f"test_my_{skeleton}.py").read_text()
        before, adapt, fact = test.partition("# Adapt")
        (entry,) = (
            entry
            for entry in Registry.load(project.root / "plugins", [plural]).entries(plural)
            if entry.component.name == f"my_{skeleton}"
        )
        options = [rf"\b{option}\b" for option in entry.component.model_fields]
        assert options
        assert adapt
        assert not any(re.search(option, before) for option in options)
        assert any(re.search(option, fact) for option in options)


def test_new_needs_no_torch_where_the_kind_needs_none(project: Project) -> None:
    for arguments in (["plugins", "--help"], ["plugins", "new", "corpus", "mine"], ["plugins", "corpora"]):
        code = (
            "import sys; from pipeline.cli import cli; from pipeline.command_line.process import exit_code;"
            f"assert exit_code(cli, {arguments!r}) == 0; print('torch' in sys.modules)"
        )
        result = python(project, "-c", code)
        assert result.stdout.endswith("False\n"), result.stdout + result.stderr


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("nonsense", "mine", "there is no kind 'nonsense'"),
        ("loss", "Mine", "component name"),
        ("loss", "my-loss", "component name"),
        ("loss", "2nd", "component name"),
        ("loss", "../mine", "component name"),
        ("loss", "_mine", "start with _"),
        ("loss", "lambda", "reserved word in Python"),
        ("loss", "use", "reserved word in params.yaml"),
        ("loss", "none", "class name None"),
        ("corpus", "document", "class name Document"),
        ("sampler", "top_k", "plugins/samplers/top_k.py already exists"),
        ("optimizer", "torch", "'torch' already exists (plugins/optimizers/torch_optim.py)"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line_and_writes_nothing(
    project: Project, kind: str, name: str, says: str
) -> None:
    before = files(project)
    result = project.run("plugins", "new", kind, name)
    assert result.code == 1
    assert says in result.err
    assert result.err.count("\n") == 1
    assert files(project) == before


@pytest.mark.parametrize(
    "taken",
    [
        "plugins/losses/mine.py",
        "plugins/losses/mine/__init__.py",
        "tests/a/test_loss_mine.py",
    ],
)
def test_nothing_is_overwritten(project: Project, taken: str) -> None:
    path = project.root / taken
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# mine\n")
    (project.root / "tests" / "plugins").mkdir(parents=True, exist_ok=True)
    (project.root / "tests" / "plugins" / "test_mine.py").write_text("# mine, too\n")
    before = files(project)
    result = project.run("plugins", "new", "loss", "mine")
    assert result.code == 1
    assert "already exists" in result.err
    assert path.read_text() == "# mine\n"
    assert files(project) == before


def test_a_test_of_this_name_in_another_folder_is_in_nobodys_way(project: Project) -> None:
    (project.root / "tests" / "train").mkdir(parents=True)
    (project.root / "tests" / "train" / "test_parallel.py").write_text("def test_of_something_else(): pass\n")
    out = project.succeed("plugins", "new", "model", "parallel").out
    assert "wrote tests/plugins/test_model_parallel.py" in out


def test_both_files_are_written_or_neither(project: Project) -> None:
    (project.root / "tests").write_text("a file where a folder is needed")
    result = project.run("plugins", "new", "loss", "mine")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert not (project.root / "plugins" / "losses" / "mine.py").exists()


def test_new_outside_a_project_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root / "data")
    result = project.run("plugins", "new", "loss", "mine")
    assert result.code == 1
    assert "plugins is missing" in result.err


# ── check ─────────────────────────────────────────────────────────────────────────────────────────


# The contract tests prove the exporters in the same way, and it takes its time.
@pytest.mark.parametrize(
    "plural",
    [pytest.param(kind, marks=[pytest.mark.long] if kind == "exporters" else []) for kind in KINDS],
)
def test_every_shipped_plugin_passes_its_check(
    project: Project, plural: str, request: pytest.FixtureRequest
) -> None:
    """With `--long` every one, else one of each kind: test_contract.py checks what all of them hold."""
    (project.root / "data/raw/ids.bin").write_bytes(bytes([1, 0, 2, 0]))  # for token_files
    talk = '{"text": "Hi", "prompt": "Hi", "completion": "Hello"}\n'
    (project.root / "data/raw/talks.jsonl").write_text(talk)  # for conversations, and a text for files
    before = files(project)
    found = plugin_files(project.root / "plugins" / plural)
    for path in found if request.config.getoption("long") else found[:1]:
        shown = path.parent if path.name == "__init__.py" else path
        if shown.stem in {"python_docs", "huggingface"}:  # these take long, and test_contract.py checks them
            continue
        out = project.succeed("plugins", "check", str(shown.relative_to(project.root))).out
        assert f"({path.relative_to(project.root)})" in out
        assert all(line.startswith(f"ok  {KINDS[plural].singular} ") for line in out.splitlines())
    assert files(project) == before


def test_an_exporter_is_checked_with_the_trained_model_where_there_is_one(trained_project: Project) -> None:
    trained_project.succeed("plugins", "new", "exporter", "mine")
    trained_project.succeed("plugins", "check", "plugins/exporters/mine.py")
    (trained_project.root / "artifacts" / "checkpoint" / "best.pth").unlink()
    result = trained_project.run("plugins", "check", "plugins/exporters/mine.py")
    assert result.code == 1
    assert "best.pth is missing" in result.err


def exporter_that_knows(project: Project, *known: str) -> None:
    """Creates an exporter that only supports these models."""
    project.succeed("plugins", "new", "exporter", "mine")
    path = project.root / "plugins" / "exporters" / "mine.py"
    working = "        (folder / _FILE).write_bytes"
    refusal = f"""        if source.config["name"] not in {known}:
            raise ValueError("only GPT-2 has a\\nform here")
"""
    assert working in path.read_text()
    path.write_text(path.read_text().replace(working, refusal + working))


def test_an_exporter_may_say_that_it_does_not_know_a_model(project: Project) -> None:
    exporter_that_knows(project, "gpt2")
    out = project.succeed("plugins", "check", "plugins/exporters/mine.py").out
    assert out == (
        "ok  exporter mine (plugins/exporters/mine.py); it refuses the model llama: only GPT-2 has a form here; "
        "it refuses the model modern: only GPT-2 has a form here\n"
    )


def test_an_exporter_that_knows_no_model_at_all_breaks_its_contract(project: Project) -> None:
    exporter_that_knows(project)
    result = project.run("plugins", "check", "plugins/exporters/mine.py")
    assert result.code == 1
    assert "breaks its contract: it refuses the model gpt2: only GPT-2 has a form here; it refuses" in result.err
    assert result.err.count("\n") == 1


def broken(project: Project, old: str, new: str) -> Path:
    """Creates a loss with one change in its source."""
    project.succeed("plugins", "new", "loss", "mine")
    path = project.root / "plugins" / "losses" / "mine.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (".view(targets.shape)", ".mean()", "breaks its contract: one number per target, (3, 5), not ()"),
        ("ignore_index=IGNORED", "ignore_index=IGNORED + 1", "raised IndexError: Target -100 is out of bounds"),
        ('reduction="none"', 'reduction="nonsense"', "raised ValueError: nonsense"),
    ],
)
def test_a_broken_component_is_one_line_that_names_it_and_the_rule(
    project: Project, old: str, new: str, says: str
) -> None:
    broken(project, old, new)
    result = project.run("plugins", "check", "plugins/losses/mine.py")
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("error: the loss ")
    assert "plugins/losses/mine.py" in result.err
    assert says in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("place", ["plugins/loss", "plugins", "plugins/losses/more"])
def test_a_file_that_no_run_finds_is_refused_with_the_folder_of_its_kind(project: Project, place: str) -> None:
    source = broken(project, "class", "class").rename(project.root / "mine.py")
    (project.root / place).mkdir(exist_ok=True)
    source.rename(project.root / place / "mine.py")
    result = project.run("plugins", "check", f"{place}/mine.py")
    assert result.code == 1
    assert f"{place}/mine.py" in result.err
    assert "move it to plugins/losses/" in result.err


def test_a_file_anywhere_is_checked_as_what_it_registers(project: Project, tmp_path: Path) -> None:
    source = broken(project, "class", "class").read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text(source)
    (tmp_path / "_elsewhere.py").write_text(source)
    for name in ("elsewhere", "elsewhere/__init__.py", "_elsewhere.py"):
        assert "ok  loss mine (" in project.succeed("plugins", "check", str(tmp_path / name)).out


def test_what_is_no_plugin_or_takes_a_name_is_one_line(project: Project) -> None:
    losses = project.root / "plugins" / "losses"
    (losses / "_shared.py").write_text("x = 1\n")
    (losses / "notes.txt").write_text("Not Python.\n")
    cases = {"_shared.py": "registers no component", "notes.txt": "not a plugin", "": "not a plugin"}
    for name, says in cases.items():
        result = project.run("plugins", "check", f"plugins/losses/{name}")
        assert result.code == 1
        assert says in result.err
    broken(project, 'name: ClassVar[str] = "mine"', 'name: ClassVar[str] = "focal"')
    result = project.run("plugins", "check", "plugins/losses/mine.py")
    for part in ("plugins/losses/mine.py", "'focal'", "plugins/losses/focal.py", "rename"):
        assert part in result.err
    assert project.run("plugins", "check", "nowhere.py").code == 2


def test_a_corpus_reads_the_root_that_is_given(project: Project, tmp_path: Path) -> None:
    project.succeed("plugins", "new", "corpus", "mine")
    (tmp_path / "texts").mkdir()
    result = project.run("plugins", "check", "plugins/corpora/mine.py", "--root", str(tmp_path / "texts"))
    assert result.code == 1
    assert "a corpus must have at least one document" in result.err
    (tmp_path / "texts" / "a.txt").write_text("The river runs to a sea of light.\n")
    project.succeed("plugins", "check", "plugins/corpora/mine.py", "--root", str(tmp_path / "texts"))
