"""The commands: thin, and quick to answer `--help`: a stage, and torch, is imported when its command runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.core import command_exit
from pipeline.core.errors import Interrupted, PipelineError, explain_os_error, out_of_memory
from pipeline.core.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.params import Params


class _Group(click.Group):
    """Keeps commands in the order in which a person runs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gpt-training-pipeline", prog_name="pipeline")
def cli() -> None:
    """Train a GPT on your own text, from raw text to an export that other programs load.

    The five stages read params.yaml in the current folder; `dvc repro` runs those that are out of date.
    Each can be run alone, and says what it read and what it wrote.
    """
    from pipeline.core.publication import recover

    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0" and recover(Paths(Path.cwd())):
        click.echo("note: a process that was killed had begun to replace a stage's outputs: completed", err=True)


_params_option = click.option(
    "--params", "params_file", type=click.Path(path_type=Path), default=Path("params.yaml"),
    show_default=True, metavar="FILE", help="The params file.",
)  # fmt: skip


def _with_params(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
        help="Set one value for this run; may be repeated.",
    )(command)  # fmt: skip
    return _params_option(command)


def _read(params_file: Path, overrides: tuple[str, ...]) -> tuple[Params, Paths]:
    from pipeline.params.reader import load_params

    return load_params(params_file, overrides), Paths(Path.cwd())


def _say_all(lines: Iterable[object], indent: int = 2, wrap: bool = True) -> None:
    from pipeline.core.console import say

    for line in lines:
        say(str(line), indent, wrap)


def _stage(name: str, does: str, writes: str) -> None:
    @cli.command(name, help=f"{does}\n\nWrites {writes}.", short_help=does)
    @_with_params
    def command(params_file: Path, overrides: tuple[str, ...]) -> None:
        params, paths = _read(params_file, overrides)
        _note_what_dvc_does_not_see(paths, params_file, overrides)
        import_module(f"pipeline.{name}.stage").run(params, paths)


def _note_what_dvc_does_not_see(paths: Paths, params_file: Path, overrides: tuple[str, ...]) -> None:
    """A result of `--set` is not that of params.yaml, which is what DVC would record beside it."""
    unseen = [each for each in overrides if each.partition("=")[0].split(".")[0].strip() != "runtime"]
    if unseen and "DVC_STAGE" not in os.environ and (paths.root / ".dvc").exists():
        from pipeline.params.reader import read_sections

        values = read_sections(params_file)
        settings = " ".join(f"-S {shlex.quote('+' * (not _there(values, each)) + each)}" for each in unseen)
        command = f"dvc exp run {settings}"
        _say_all([f"note: --set is not in params.yaml, so DVC does not record it; `{command}` does"])


def _there(values: Any, override: str) -> bool:
    """Whether a params file has the key that is set; DVC adds one that it lacks only where a + asks for it."""
    for part in override.partition("=")[0].strip().split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


_stage("tokenize", "Turn the corpus into token ids.", "artifacts/tokens")
_stage("split", "Cut the tokens into train, val and test.", "artifacts/splits")
_stage("train", "Train the GPT, or go on with an interrupted run.", "artifacts/checkpoint and metrics/")
_stage("evaluate", "Measure the model on every held-out token.", "metrics/evaluate.json and reports/report.html")
_stage("export", "Export the model and prove the export.", "artifacts/export")


_weights_option = click.option(
    "--weights", type=click.Choice(["best", "last"]), help="Which of the checkpoint's weights."
)


def _drawing(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of what draws text from the trained model."""
    options = [
        click.option("--tokens", type=click.IntRange(1, 2**20), help="How many tokens to add."),
        click.option(
            "--sampler", "samplers", multiple=True, metavar="NAME", help="A sampler; may be repeated, in order."
        ),
        click.option("--temperature", type=float, metavar="T", help="Divides the logits; 0: the likeliest token."),
        click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest tokens."),
        click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens that reach P."),
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), help="Decides the draws; the same one, the same text."
        ),
        click.option(
            "--stop", "stops", multiple=True, metavar="TEXT", help="A text to end before; may be repeated."
        ),
        _weights_option,
        click.option(
            "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True,
            help="Of the weights; auto is what is quickest here.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(short_help="Continue a prompt, or several, with the trained model.")
@click.argument("prompts", metavar="PROMPT...", nargs=-1)
@click.option(
    "--prompts", "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE",
    help="Further prompts, one a line; - reads them from the standard input.",
)  # fmt: skip
@click.option(
    "--num-samples", type=click.IntRange(1, 10_000), default=1, show_default=True, metavar="N",
    help="Continuations of each prompt.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each continuation.")
@_drawing
@_with_params
def generate(
    prompts: tuple[str, ...], file: str | None, params_file: Path, overrides: tuple[str, ...], **options: Any
) -> None:
    """Continue PROMPT with the trained model, token by token; several at once, each shown when it is done.

    Samplers and their options come from params.yaml (evaluate.samplers), the seed and the length from
    evaluate.generation; --set changes these values. --sampler chooses the samplers instead. Then --temperature,
    --top-k and --top-p set the option of that sampler, and add it if it is not among the chosen ones.

    A text may outgrow the model's context: whenever that is full, the model continues from the later half of it.
    """
    if not prompts and file is None:
        raise click.UsageError("Missing argument 'PROMPT...', or --prompts FILE.", click.get_current_context())
    params, paths = _read(params_file, overrides)
    from pipeline.commands.generate import read_prompts, run

    run(params, paths, [*prompts, *(read_prompts(file) if file else [])], **options)


@cli.command(short_help="Write a text in turns with the trained model.")
@_drawing
@_with_params
def chat(params_file: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Write a text in turns with the trained model: it continues what you type, and remembers it.

    The model continues texts; it was not taught to answer. A line that you type begins a new line of the text, or,
    if it begins with a space, continues the same one; Enter alone lets the model go on. Ctrl-C ends a
    continuation, Ctrl-D the session, /help lists what else there is. On a pipe, the text itself is printed.
    """
    params, paths = _read(params_file, overrides)
    from pipeline.commands.chat import run

    run(params, paths, **options)


@cli.command(short_help="Measure how well the trained model predicts texts.")
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option("--tokens", "by_token", is_flag=True, help="Show every token with its loss.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
@_weights_option
@_with_params
def score(params_file: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Measure how well the trained model predicts the text of each FILE (- is the standard input).

    Prints loss, perplexity, bits per byte and accuracy of each file, and of all. Each is a document of its own:
    end-of-text stands before it, so that its first token counts too. Windows are evaluation's (evaluate.stride),
    encoding and line ends those of the corpus (tokenize.corpus).
    """
    params, paths = _read(params_file, overrides)
    from pipeline.commands.score import run

    run(params, paths, **options)


class _Compare(click.Command):
    """`--against` takes all the names that follow it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--against" in args:
            start = args.index("--against")
            names = [each if each.startswith("-") else f"--against={each}" for each in args[start + 1 :]]
            args = args[:start] + (names or ["--against"])
        return super().parse_args(ctx, args)


@cli.command(cls=_Compare, short_help="Tell whether runs, or recipes, really differ.")
@click.argument("names", metavar="[A] [B]", nargs=-1)
@click.option(
    "--against", multiple=True, metavar="B1 B2 ...",
    help="Compare recipes: runs with other seeds of the one, A1 A2 ..., and of the other.",
)  # fmt: skip
@click.option(
    "--by", multiple=True, metavar="PARAM",
    help="Rank the recipes of a sweep: the runs by the values of a param; may be repeated.",
)  # fmt: skip
@click.option("--json", "form", flag_value="json", help="Print everything as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print tables for a pull request.")
@click.option("--text", "form", flag_value="text", default="text", hidden=True)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="With --by: write a page with curves, too.",
)  # fmt: skip
def compare(
    names: tuple[str, ...], against: tuple[str, ...], by: tuple[str, ...], form: str, html: Path | None
) -> None:
    """Tell whether two runs differ in their loss on val and test, and by how much for certain.

    A and B are git revisions, DVC experiments or folders: unless given, the last commit and the working tree.

    \b
    pipeline compare
        the last commit and the working tree
    pipeline compare main wide
        two checkpoints: would other text say the same?
    pipeline compare a1 a2 a3 --against b1 b2 b3
        two recipes: would other seeds say the same, too?
    pipeline compare --by train.optimizer.muon.lr
        a sweep: which of the last commit's experiments are better?

    With --by, give names for other runs than the last commit's experiments: runs, or a commit for the experiments
    that stand on it. Runs that differ in train.seed alone are repetitions.
    """
    if by and against:
        raise click.UsageError("--by compares all recipes with each other: give their runs before it, no --against")
    if html and not by:
        raise click.UsageError("--html is the page of a sweep: name its params with --by")
    if by:
        from pipeline.commands.compare import run_sweep

        _say_all(run_sweep(Paths(Path.cwd()), names, by, form, html), wrap=form == "text")
        return
    if len(names) > 2 and not against:
        raise click.UsageError(
            "two runs are compared at a time; for several seeds of two recipes, put --against between"
        )
    if against and not names:
        raise click.UsageError("give the runs of the first recipe before --against")
    from pipeline.commands.compare import run

    _say_all(run(Paths(Path.cwd()), names, against, form), wrap=form == "text")


@cli.command(short_help="List the presets, or write one into params.yaml.")
@click.argument("name", required=False)
@_params_option
def preset(name: str | None, params_file: Path) -> None:
    """List the presets, or write the values of preset NAME into params.yaml.

    Every value but those of `runtime` is set; comments and the options of your own components stay.
    """
    from pipeline.params.presets import PRESETS, write_preset

    if name is None:
        _say_all((f"{each:<18}{description}" for each, description in PRESETS.items()), indent=18)
        return
    changes = write_preset(name, params_file)
    _say_all([*changes, f"{params_file} holds the preset {name}" + ("" if changes else " already")])


@cli.command("check", short_help="Tell what a run needs, and what would stop it.")
@_with_params
def preflight(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Tell what can be known before a run: what would stop it, the model's size, memory and time.

    Checks params, plugins, data, device and what git and DVC track, and takes a few real steps; writes nothing.
    """
    params, paths = _read(params_file, overrides)
    from pipeline.commands.check import run

    run(params, paths)


class _Plugins(_Group):
    """`plugins losses` is short for `plugins list losses`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            from pipeline.authoring.listing import find_kind
            from pipeline.core.errors import PluginError

            try:
                find_kind(args[0])
            except PluginError as error:
                ctx.fail(f"there is no command {args[0]!r} (there are: {', '.join(self.commands)}), and {error}")
            args = ["list", *args]
        return super().resolve_command(ctx, args)


@cli.group(cls=_Plugins, invoke_without_command=True, short_help="List, explain, write and check components.")
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List, explain, write and check components. Without a command, list them all.

    `pipeline plugins losses` is short for `pipeline plugins list losses`.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@plugins.command("list", short_help="List components and their options.")
@click.argument("kind", required=False)
def list_plugins(kind: str | None) -> None:
    """List every component with its options, their defaults and where it comes from.

    KIND narrows the list: corpora, models, losses, optimizers, schedules, batch_samplers, eval_callbacks, samplers,
    metrics or exporters.
    """
    from pipeline.authoring.listing import lines

    _say_all(lines(Paths(Path.cwd()).plugins, kind))


@plugins.command("show", short_help="Explain a component and each of its options.")
@click.argument("name")
def show_plugin(name: str) -> None:
    """Explain the component NAME: its source, how params.yaml chooses it, and each option with type, bounds and
    default."""
    from pipeline.authoring.listing import details

    _say_all(details(Paths(Path.cwd()).plugins, name))


@plugins.command("new", short_help="Write a component that works, and its test.")
@click.argument("kind")
@click.argument("name")
def new_plugin(kind: str, name: str) -> None:
    """Write plugins/KIND/NAME.py, a component that works, and its test tests/plugins/test_NAME.py.

    KIND is a corpus, model, loss, optimizer, schedule, batch-sampler, eval-callback, sampler, metric or exporter.
    Nothing is overwritten.
    """
    from pipeline.authoring.skeleton import write_skeleton

    _say_all(write_skeleton(Paths(Path.cwd()), kind, name))


@plugins.command("check", short_help="Hold a plugin file against its contract.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="The texts that a corpus reads; data/raw unless given.",
)  # fmt: skip
def check_plugin(path: Path, root: Path | None) -> None:
    """Hold the components that PATH registers against the contract of their kind.

    PATH is a plugin file, or a package's folder. Options keep their defaults. An exporter gets the trained model
    where there is one, else a tiny random one.
    """
    from pipeline.commands.check_plugin import run

    run(Paths(Path.cwd()), path, root)


@cli.command(short_help="Write what explains params.yaml to editors and people.")
def schema() -> None:
    """Write params.schema.json, with which editors complete and explain params.yaml, and docs/params.md for people.

    Both are made from the models that check params.yaml, your own components included.
    """
    from pipeline.core.files import write_atomically, write_json
    from pipeline.params import reference, schema
    from pipeline.plugin.registry import Registry

    paths = Paths(Path.cwd())
    broken = Registry.load(paths.plugins).broken
    _say_all(f"note: {each.message} (not loaded, so not described)" for each in broken)
    write_json(paths.schema, schema.schema(paths.plugins))
    write_atomically(paths.reference, reference.reference(paths.plugins))
    click.echo(f"wrote {paths.shown(paths.schema)} and {paths.shown(paths.reference)}")


@cli.command(short_help="Record the installed versions for DVC.")
def lock() -> None:
    """Write what DVC compares and cannot see itself: the installed versions that decide results (environment.yaml),
    and the files behind links to folders below data/ (.NAME.manifest.json beside the link).
    """
    from pipeline.commands.versions import deciding_packages
    from pipeline.core.environment import environment_changes, environment_yaml
    from pipeline.core.files import write_atomically
    from pipeline.core.symlinks import record_symlinks
    from pipeline.plugin.registry import Registry

    params, paths = _read(Path("params.yaml"), ())
    installed = Registry.load(None)
    _say_all(f"note: {each.message} (not loaded, so recorded for every kind)" for each in installed.broken)
    packages = deciding_packages(params, paths, installed)
    changes = environment_changes(paths.environment, packages)
    if changes:
        write_atomically(paths.environment, environment_yaml(packages))
    click.echo(f"environment.yaml written ({'; '.join(changes)})" if changes else "environment.yaml is up to date")
    _say_all(record_symlinks(paths.root / "data"))


@cli.command(short_help="List the training runs with checkpoints.")
@click.option("--watch", is_flag=True, help="Show the last steps of the run that is training; Ctrl-C leaves.")
def runs(watch: bool) -> None:
    """List the training runs with checkpoints in .resume/, which `pipeline train` resumes.

    A run is named by the fingerprint of all that decides its result. `pipeline clean` forgets runs.
    """
    if watch:
        from pipeline.commands.watch import watch as show_steps

        show_steps(Paths(Path.cwd()).resume)
        return
    from pipeline.commands.runs import table

    _say_all(table(Paths(Path.cwd()).resume))


@cli.command(short_help="Delete the checkpoints of training runs.")
@click.argument("names", nargs=-1, metavar="[RUN]...")
@click.option("--keep", type=click.IntRange(min=0), default=0, metavar="N", help="Keep the N that were saved last.")
def clean(names: tuple[str, ...], keep: int) -> None:
    """Delete the checkpoints of each RUN, or of all runs in .resume/, except those that are running.

    RUN is the beginning of a name that `pipeline runs` lists.
    """
    from pipeline.commands.runs import clean as forget

    _say_all(forget(Paths(Path.cwd()).resume, names, keep))


def main() -> None:
    """Runs a command; any error a person can fix is one line on stderr and exit code 1."""
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    command_exit.stop_on_sigterm()
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        result: Any = cli.main(arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "pipeline"
        return command_exit.fail(f"{error.format_message()} (see `{command} --help`)", 2)
    except click.ClickException as error:
        return command_exit.fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return command_exit.stopped("stopped by Ctrl-C", signal.SIGINT)
    except Interrupted as error:
        return command_exit.stopped(str(error), error.signal_number)
    except PipelineError as error:
        command_exit.show_traceback(error)
        return command_exit.fail(str(error), 1)
    except SystemExit:
        if type(sys.stdout) is not click.utils.PacifyFlushWrapper:
            raise
        from pipeline.core.console import ignore_output

        ignore_output()  # click found that nobody reads on: leave in silence
        return 0
    except OSError as error:
        return command_exit.fail(explain_os_error(error), 1)
    except BaseException as error:
        if out_of_memory(error):
            return command_exit.fail(
                "out of memory: lower train.micro_batch_size (or evaluate.batch_size), model.context_length or "
                "model.emb_dim",
                1,
            )
        from pipeline.plugin.calls import plugin_error

        found = plugin_error(error)
        if found is None:
            raise
        command_exit.show_traceback(error)
        return command_exit.fail(str(found), 1)
