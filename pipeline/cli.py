"""The commands. A command imports its stage, and torch, only when it runs, so that `--help` is fast."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from pipeline.command_line.groups import CompareCommand, Group, PluginsGroup
from pipeline.command_line.options import (
    generation_options,
    params_option,
    read_params,
    system_option,
    weights_option,
    with_params,
)
from pipeline.command_line.process import run_and_exit
from pipeline.command_line.stages import stage_command, stage_names
from pipeline.core.errors import PipelineError
from pipeline.core.paths import Paths
from pipeline.core.processor import run_as_many_threads_as_asked

run_as_many_threads_as_asked()  # before torch is imported


_STAGES = stage_names()


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=f"""Train a GPT on your own text, from raw text to an export that other programs load.

    The stages ({', '.join(_STAGES)}) read params.yaml in the current folder. `dvc repro` runs the stages whose
    inputs changed. Each stage can also be run alone; it prints what it read and wrote.
    """,
)  # fmt: skip
@click.version_option(package_name="gpt-training-pipeline", prog_name="pipeline")
def cli() -> None:
    """All commands."""
    from pipeline.core.publication import recover

    try:
        paths = Paths(Path.cwd())
    except FileNotFoundError:
        raise PipelineError("the current folder was removed: change into the project's folder") from None
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0" and recover(paths):
        click.echo("note: a killed process had not finished replacing a stage's outputs: finished now", err=True)


def _print_lines(lines: Iterable[object], indent: int = 2, wrap: bool = True) -> None:
    from pipeline.core.console import say

    for line in lines:
        say(str(line), indent, wrap)


for _stage in _STAGES:
    cli.add_command(stage_command(_stage))


@cli.command(short_help="Continue one or more prompts with the trained model.")
@click.argument("prompts", metavar="PROMPT...", nargs=-1)
@click.option(
    "--prompts", "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE",
    help="Read more prompts from FILE, one per line (- is standard input). With --chat, .jsonl: conversations.",
)  # fmt: skip
@click.option("--chat", is_flag=True, help="Answer each PROMPT as the message of a user.")
@system_option
@click.option(
    "--num-samples", type=click.IntRange(1, 10_000), default=1, show_default=True, metavar="N",
    help="Number of continuations per prompt.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per continuation.")
@generation_options
@with_params
def generate(
    prompts: tuple[str, ...], file: str | None, chat: bool, system: str | None,
    params_file: Path, overrides: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Continue each PROMPT with the trained model.

    A single continuation is printed token by token; several are computed together, and each is printed when it is
    complete.

    The samplers and their options come from params.yaml (evaluate.samplers), the seed and the length from
    evaluate.generation. --set changes these values; --sampler replaces the list of samplers. --temperature, --top-k
    and --top-p set the option of that sampler, and add the sampler if it is not in the list.

    The text may become longer than the model's context: when the context is full, the model continues from the
    second half of it.

    With --chat, each PROMPT is the message of a user to a model that was trained on conversations. Only the answer
    is printed. It ends with the assistant's turn, or when the context is full. --prompts FILE.jsonl reads
    conversations, {"messages": [{"role": ..., "content": ...}, ...]} in each line, and --json prints such lines.
    """
    if not prompts and file is None:
        raise click.UsageError("Missing argument 'PROMPT...', or --prompts FILE.", click.get_current_context())
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat.", click.get_current_context())
    params, paths = read_params(params_file, overrides)
    from pipeline.commands.generate import run
    from pipeline.commands.prompts import read_prompts, read_questions

    if chat:
        run(params, paths, read_questions(prompts, file, system), **options)
    else:
        run(params, paths, [*prompts, *(read_prompts(file) if file else [])], **options)


@cli.command(short_help="Talk with the trained model.")
@system_option
@generation_options
@with_params
def chat(params_file: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Talk with a model that was trained on conversations, or write a text together with any other one.

    If its tokenizer has a chat template, each line that you type is a message, and the model answers it. Ctrl-C
    stops an answer, Ctrl-D ends the session, /help lists the commands. If the input is not a terminal, each line of
    it is a message or a command, and only the answers are printed.

    Without a chat template the model continues text; it was not trained to answer. What you type starts a new line
    of the text, or continues the current line if it starts with a space. Enter alone lets the model continue. If
    the input is not a terminal, the whole text is printed, including what was read.
    """
    params, paths = read_params(params_file, overrides)
    from pipeline.commands.chat import run

    run(params, paths, **options)


@cli.command(short_help="Measure how well the trained model predicts a text.")
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option("--tokens", "by_token", is_flag=True, help="Print every token with its loss.")
@click.option("--chat", is_flag=True, help="Each FILE has conversations: score what the assistant says.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
@weights_option
@with_params
def score(params_file: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Measure how well the trained model predicts the text of each FILE (- is standard input).

    Prints loss, perplexity, bits per byte and accuracy for each file and for all files together. Each file is
    scored as one document with the end-of-text token before it, so that its first token is scored as well. The
    windows are those of the evaluate stage (evaluate.stride); the encoding and line ends are those of the corpus
    (tokenize.corpus). The corpus `files` reads PDF, DOCX, EPUB and HTML as it does for training; tables and JSON
    are scored as plain text.

    With --chat, each line of FILE is a conversation, {"messages": [{"role": ..., "content": ...}, ...]}, of which
    what the assistant says is scored. No conversation sees another.
    """
    params, paths = read_params(params_file, overrides)
    from pipeline.commands.score import run

    run(params, paths, **options)


@cli.command(cls=CompareCommand, short_help="Test whether runs or recipes differ significantly.")
@click.argument("names", metavar="[A] [B]", nargs=-1)
@click.option(
    "--against", multiple=True, metavar="B1 B2 ...",
    help="Compare two recipes: A1 A2 ... are runs of the one, B1 B2 ... of the other, each with its own seed.",
)  # fmt: skip
@click.option(
    "--by", multiple=True, metavar="PARAM",
    help="Rank the recipes of a sweep, grouped by the values of PARAM. Repeatable.",
)  # fmt: skip
@click.option(
    "--baseline", metavar="A",
    help="With --by: compare each recipe with that of A, such as HEAD, instead of the best one.",
)  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Print all results as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown tables, for a pull request.")
@click.option("--text", "form", flag_value="text", default="text", hidden=True)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Also write an HTML page with the curves of the runs.",
)  # fmt: skip
def compare(
    names: tuple[str, ...],
    against: tuple[str, ...],
    by: tuple[str, ...],
    baseline: str | None,
    form: str,
    html: Path | None,
) -> None:
    """Test whether two runs differ in their loss on val and test, with a 95% confidence interval.

    A and B are git revisions, DVC experiments or folders. Default: the last commit and the working tree.

    \b
    pipeline compare
        the last commit and the working tree
    pipeline compare main wide
        two checkpoints: would other text say the same?
    pipeline compare a1 a2 a3 --against b1 b2 b3
        two recipes: would other seeds say the same, too?
    pipeline compare --by train.optimizer.muon.lr
        a sweep: which of the last commit's experiments are better?
    pipeline compare --by train.optimizer.name --by train.loss.name --baseline HEAD
        several ideas: which of them are better than the commit's own values?

    With --by, A and B may be any number of runs, or a commit, which stands for the experiments based on it. Runs
    that differ only in train.seed are repetitions of one recipe.
    """
    if by and against:
        raise click.UsageError("--by and --against exclude each other: give all runs before --by")
    if baseline and not by:
        raise click.UsageError("--baseline is for --by: to compare two runs, give both")
    if not by and len(names) > 2 and not against:
        raise click.UsageError(
            f"{len(names)} runs: give two, or put --against between the runs of two recipes, or rank them with --by"
        )
    if against and not names:
        raise click.UsageError("give the runs of the first recipe before --against")
    from pipeline.commands.compare import run, run_sweep

    paths = Paths(Path.cwd())
    lines = run_sweep(paths, names, by, form, html, baseline) if by else run(paths, names, against, form, html)
    _print_lines(lines, wrap=form == "text")
    if html and form == "text":
        _print_lines(["", f"wrote {html}"])


@cli.command(short_help="List the presets, or write one into params.yaml.")
@click.argument("name", required=False)
@click.option(
    "--new-base", is_flag=True, help="For chat-tiny: copy artifacts/checkpoint to data/weights/base again."
)  # fmt: skip
@params_option
def preset(name: str | None, new_base: bool, params_file: Path) -> None:
    """List the presets, or write the values of preset NAME into params.yaml.

    Sets every value except those in `runtime`. Comments and the options of your own components are kept. chat-tiny
    begins with the default run's checkpoint, which it keeps in data/weights/base.
    """
    from pipeline.params.presets import BEGIN_WITH_BASE, PRESETS, write_preset

    if name is None:
        _print_lines((f"{each:<18}{description}" for each, description in PRESETS.items()), indent=18)
        return
    if new_base and name not in BEGIN_WITH_BASE:
        raise click.UsageError(f"--new-base is for {', '.join(BEGIN_WITH_BASE)}, not for {name}")
    if name in BEGIN_WITH_BASE:
        from pipeline.commands.base_weights import keep_base

        _print_lines([keep_base(Paths(Path.cwd()), new_base)])
    from pipeline.commands.versions import record_for_dvc

    changes = write_preset(name, params_file)
    _print_lines([*changes, f"{params_file} {'now' if changes else 'already'} has the values of the preset {name}"])
    _print_lines(record_for_dvc(params_file, Paths(Path.cwd())))


@cli.command(short_help="Choose the settings for your text, this machine and a time.")
@click.option(
    "--minutes", type=click.FloatRange(min=0.1, max=60 * 24 * 60), default=10.0, show_default=True,
    help="How long training may take on this machine.",
)  # fmt: skip
@click.option("--dry-run", "--show", is_flag=True, help="Say what would be chosen; write nothing.")
@with_params
def fit(params_file: Path, overrides: tuple[str, ...], minutes: float, dry_run: bool) -> None:
    """Choose the settings for your text, this machine and a time, write them into params.yaml, and say why.

    Reads the text (the beginning of a large one), runs a few training steps, and chooses vocabulary, split, model
    size, batch, number of steps, dropout and learning rates. What --set gives is kept and written, too. Everything
    else in params.yaml stays as it is.
    """
    _, paths = read_params(params_file, overrides)
    from pipeline.commands.fit import run

    run(params_file, overrides, paths, minutes, dry_run)


@cli.command("check", short_help="Find problems before a run; estimate its memory and time.")
@with_params
def preflight(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Find problems before a run, and estimate its model size, memory and time.

    Checks params, plugins, data, device and what git and DVC track, and runs a few training steps. Writes nothing.
    """
    params, paths = read_params(params_file, overrides)
    from pipeline.commands.check import run

    run(params, paths)


@cli.group(cls=PluginsGroup, invoke_without_command=True, short_help="List, explain, create and check plugins.")
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List, explain, create and check plugins. Without a command, list all components.

    `pipeline plugins losses` is short for `pipeline plugins list losses`.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@plugins.command("list", short_help="List components and their options.")
@click.argument("kind", required=False)
def list_plugins(kind: str | None) -> None:
    """List every component with its options, their defaults and its source.

    KIND limits the list to one kind: corpora, models, losses, optimizers, schedules, batch_samplers,
    eval_callbacks, samplers, metrics or exporters.
    """
    from pipeline.authoring.listing import lines

    _print_lines(lines(Paths(Path.cwd()).plugins, kind))


@plugins.command("show", short_help="Explain a component and its options.")
@click.argument("name")
def show_plugin(name: str) -> None:
    """Explain the component NAME: its source, how params.yaml chooses it, and the type, bounds and default of each
    option."""
    from pipeline.authoring.listing import details

    _print_lines(details(Paths(Path.cwd()).plugins, name))


@plugins.command("new", short_help="Create a working component and its test.")
@click.argument("kind")
@click.argument("name")
def new_plugin(kind: str, name: str) -> None:
    """Create a working component in plugins/KIND/NAME.py, and its test in tests/plugins/test_NAME.py.

    KIND is corpus, model, loss, optimizer, schedule, batch-sampler, eval-callback, sampler, metric or exporter; or
    task-metric (a metric from a separate task), step-callback (an eval callback that acts at each step) or
    distillation-loss (a loss with a teacher). Existing files are never overwritten.
    """
    from pipeline.authoring.skeleton import write_skeleton

    _print_lines(write_skeleton(Paths(Path.cwd()), kind, name))


@plugins.command("check", short_help="Check a plugin file against its contract.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="Folder of texts that a corpus reads. Default: data/raw.",
)  # fmt: skip
def check_plugin(path: Path, root: Path | None) -> None:
    """Check the components that PATH registers against the contract of their kind.

    PATH is a plugin file or the folder of a package. All options have their defaults. An exporter gets the trained
    model if there is one, else a tiny random model.
    """
    from pipeline.commands.check_plugin import run

    run(Paths(Path.cwd()), path, root)


@cli.command(short_help="Write the JSON schema and the reference of params.yaml.")
def schema() -> None:
    """Write params.schema.json, which editors use to complete and explain params.yaml, and docs/params.md.

    Both are generated from the code that validates params.yaml, and include your own components.
    """
    from pipeline.core.files import write_atomically, write_json
    from pipeline.params import reference, schema
    from pipeline.plugin.registry import Registry

    paths = Paths(Path.cwd())
    broken = Registry.load(paths.plugins).broken
    _print_lines(f"note: {each.message} (not loaded, so its options are left out)" for each in broken)
    write_json(paths.schema, schema.schema(paths.plugins))
    write_atomically(paths.reference, reference.reference(paths.plugins))
    click.echo(f"wrote {paths.shown(paths.schema)} and {paths.shown(paths.reference)}")


@cli.command(short_help="Record the installed versions for DVC.")
def lock() -> None:
    """Record inputs that DVC cannot see by itself.

    Writes environment.yaml (the installed versions that affect results); beside each symbolic link to a folder
    below data/, a list of the files that it leads to (.NAME.manifest.json); and, for texts below a URL
    (tokenize.corpus.files.url), a list of them (data/remote.jsonl).
    """
    from pipeline.commands.versions import record
    from pipeline.tokenize.stage import record_corpus

    params, paths = read_params(Path("params.yaml"), ())
    texts = list(record_corpus(params, paths))  # first: a server may not answer, and then nothing is written
    lines = list(record(params, paths))
    if not any(line.startswith("environment.yaml") for line in lines):
        click.echo("environment.yaml is up to date")
    _print_lines([*lines, *texts])


@cli.command(short_help="List the training runs with checkpoints, and kept tokens.")
@click.option("--watch", is_flag=True, help="Show the latest steps of the current training run until Ctrl-C.")
def runs(watch: bool) -> None:
    """List the training runs with checkpoints in .resume/, which `pipeline train` can resume.

    The name of a run is the fingerprint of everything that affects its result. The last column has its values of
    the params in which the runs differ. `pipeline clean` deletes runs.
    The last line is about .resume/tokens/, what `pipeline tokenize` keeps of a large corpus.
    """
    from pipeline.commands.runs import require_project, table

    folder = Paths(Path.cwd()).resume
    require_project(folder)
    if watch:
        from pipeline.commands.watch import watch as show_steps

        show_steps(folder)
        return
    _print_lines(table(folder))


@cli.command(short_help="Delete the checkpoints of training runs, and kept tokens.")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option(
    "--keep", type=click.IntRange(min=0), default=0, metavar="N", help="Keep the N most recently saved runs."
)
def clean(names: tuple[str, ...], keep: int) -> None:
    """Delete the checkpoints of each RUN, or of all runs in .resume/, except runs that are training now.

    RUN is a name that `pipeline runs` lists, or the beginning of one. `tokens` is what `pipeline tokenize` keeps;
    it is also deleted with all runs.
    """
    from pipeline.commands.runs import clean as delete_runs
    from pipeline.commands.runs import require_project

    folder = Paths(Path.cwd()).resume
    require_project(folder)
    _print_lines(delete_runs(folder, names, keep))


def main() -> None:
    """The program `pipeline`."""
    run_and_exit(cli)
