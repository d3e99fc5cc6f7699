"""The commands: thin, and quick to answer `--help`: a stage, and torch, is imported when its command runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import Interrupted, PipelineError, explain_os_error

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.paths import Paths

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|size calculation overflowed")


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


def _with_params(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
        help="Set one value for this run; may be repeated.",
    )(command)  # fmt: skip
    return click.option(
        "--params", "params_file", type=click.Path(path_type=Path), default=Path("params.yaml"),
        show_default=True, metavar="FILE", help="The params file.",
    )(command)  # fmt: skip


def _read(params_file: Path, overrides: tuple[str, ...]) -> tuple[Params, Paths]:
    from pipeline.params import load_params
    from pipeline.paths import Paths

    return load_params(params_file, overrides), Paths(Path.cwd())


def _stage(name: str, does: str, writes: str) -> None:
    @cli.command(name, help=f"{does}\n\nWrites {writes}.", short_help=does)
    @_with_params
    def command(params_file: Path, overrides: tuple[str, ...]) -> None:
        params, paths = _read(params_file, overrides)
        import_module(f"pipeline.stages.{name}").run(params, paths)


_stage("tokenize", "Turn the corpus into token ids.", "artifacts/tokens")
_stage("split", "Cut the tokens into train, val and test.", "artifacts/splits")
_stage("train", "Train the GPT, or go on with an interrupted run.", "artifacts/checkpoint and metrics/")
_stage("evaluate", "Measure the model on every held-out token.", "metrics/evaluate.json and reports/report.html")
_stage("export", "Export the model and prove the export.", "artifacts/export")


@cli.command(short_help="Continue a prompt with the trained model.")
@click.argument("prompt")
@click.option("--tokens", type=click.IntRange(min=1), help="How many tokens to add.")
@click.option("--sampler", "samplers", multiple=True, metavar="NAME", help="A sampler; may be repeated, in order.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Decides the draws; the same one, the same text.")
@click.option("--weights", type=click.Choice(["best", "last"]), help="Which of the checkpoint's weights.")
@_with_params
def generate(
    prompt: str,
    tokens: int | None,
    samplers: tuple[str, ...],
    seed: int | None,
    weights: str | None,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Continue PROMPT with the trained model, token by token.

    Samplers and their options come from params.yaml (evaluate.samplers), the seed and the length from
    evaluate.generation; the options here override them, as does --set.
    """
    params, paths = _read(params_file, overrides)
    from pipeline.stages.generate import run

    run(params, paths, prompt, tokens=tokens, samplers=samplers, seed=seed, weights=weights)


@cli.command(short_help="List every component and its options.")
@click.argument("kind", required=False)
def plugins(kind: str | None) -> None:
    """List every component with its options, their defaults and where it comes from.

    KIND narrows the list: corpora, losses, optimizers, eval_callbacks, samplers or exporters.
    """
    from pipeline.paths import Paths
    from pipeline.plugin.listing import lines

    for line in lines(Paths(Path.cwd()).plugins, kind):
        click.echo(line)


@cli.command(short_help="Write params.schema.json for editors.")
def schema() -> None:
    """Write params.schema.json, with which editors complete and explain params.yaml."""
    from pipeline.paths import Paths
    from pipeline.schema import write_schema

    paths = Paths(Path.cwd())
    write_schema(paths.schema, paths.plugins)
    click.echo(f"wrote {paths.shown(paths.schema)}")


@cli.command(short_help="Record the installed versions for DVC.")
def lock() -> None:
    """Write environment.yaml: the installed versions that decide results, for DVC to compare."""
    from pipeline.environment import write_environment
    from pipeline.paths import Paths
    from pipeline.plugin.registry import ENTRY_POINTS

    changed = write_environment(Paths(Path.cwd()).environment, ENTRY_POINTS)
    click.echo(f"environment.yaml {'written' if changed else 'is up to date'}")


@cli.command(short_help="Forget the saved states of training runs.")
def clean() -> None:
    """Forget the saved states of training runs (.resume/), those of running ones excepted."""
    from pipeline.paths import Paths
    from pipeline.training.state import remove_states

    removed, kept = remove_states(Paths(Path.cwd()).resume)
    click.echo(f"removed the states of {removed} runs" + (f", kept {kept} that are running" if kept else ""))


def main() -> None:
    """Runs a command; any error a person can mend is one line on stderr and exit code 1."""
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
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
        return _fail(f"{error.format_message()} (see `{command} --help`)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except Interrupted as error:
        return _fail(str(error), 128 + error.signal_number)
    except PipelineError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        from pipeline.console import ignore_output

        ignore_output()  # nobody reads on: leave in silence
        return 0
    except OSError as error:
        return _fail(explain_os_error(error), 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        return _fail(
            "out of memory: lower train.micro_batch_size (or evaluate.batch_size), model.context_length or "
            "model.emb_dim",
            1,
        )


def _fail(message: str, code: int) -> int:
    from pipeline.console import printable

    with suppress(BrokenPipeError):  # the exit code still says it
        click.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    return code
