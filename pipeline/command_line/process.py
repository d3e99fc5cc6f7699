"""A command as a process: its streams and signals, one-line errors, and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from pipeline.command_line.collector import collect_after_imports
from pipeline.core.errors import Interrupted, PipelineError, explain_os_error, out_of_memory

_LONGEST_MESSAGE = 4000
"""The maximum number of characters of an error."""
_COMPILERS = {"g++", "c++", "clang++", "clang", "cc1plus", "as", "collect2", "ld"}
"""Names of processes that compile generated C++, beside torch's compile workers."""


def run_and_exit(command: click.Command) -> NoReturn:
    """Runs the command with the process's arguments, and ends the process with its exit code."""
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    _stop_on_sigterm()
    collect_after_imports()
    sys.exit(exit_code(command, sys.argv[1:]))


def exit_code(command: click.Command, arguments: list[str]) -> int:
    """Runs the command; returns its exit code. An error that a person can fix is one line on stderr."""
    try:
        result: Any = command.main(arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "pipeline"
        return _fail(f"{error.format_message()} (see `{path} --help`)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return stopped("stopped by Ctrl-C", signal.SIGINT)
    except Interrupted as error:
        return stopped(str(error), error.signal_number)
    except PipelineError as error:
        _show_traceback(error)
        return _fail(str(error), 1)
    except SystemExit:
        if type(sys.stdout) is not click.utils.PacifyFlushWrapper:
            raise
        from pipeline.core.console import ignore_output

        ignore_output()  # the reader of stdout is gone (EPIPE): exit silently
        return 0
    except OSError as error:
        return _fail(explain_os_error(error), 1)
    except BaseException as error:
        if out_of_memory(error):
            return _fail(
                "out of memory: lower train.micro_batch_size (or evaluate.batch_size), model.context_length or "
                "model.emb_dim",
                1,
            )
        from pipeline.plugin.calls import plugin_error

        found = plugin_error(error)
        if found is None:
            raise
        _show_traceback(error)
        return _fail(str(found), 1)


def _show_traceback(error: BaseException) -> None:
    """Prints the traceback of an error if PIPELINE_TRACEBACK is set, for authors of plugins."""
    if os.environ.get("PIPELINE_TRACEBACK"):
        traceback.print_exception(error)


def _stop_on_sigterm() -> None:
    """Makes SIGTERM raise Interrupted, as Ctrl-C raises KeyboardInterrupt."""
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one kills at once
        if os.getpid() != process:  # a forked child
            os.kill(os.getpid(), number)
        raise Interrupted(number, "stopped by SIGTERM")

    signal.signal(signal.SIGTERM, stop)


def stopped(message: str, number: int) -> int:
    """Prints that the command stopped, and kills compiler processes, which would continue; returns the exit code.

    Other child processes continue: those of trackers still write."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has exited
            if child.name() in _COMPILERS or any("torch/_inductor" in part for part in child.cmdline()):
                child.kill()
    return _fail(message, 128 + number, "")


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    """Prints an error as one line on stderr; returns the exit code."""
    from pipeline.core.console import printable, wrapped

    line = " ".join(message.split())
    if len(line) > _LONGEST_MESSAGE:  # for example, with a value of a megabyte
        line = f"{line[: _LONGEST_MESSAGE // 2]} … {line[-_LONGEST_MESSAGE // 2 :]}"
    with suppress(BrokenPipeError):  # the exit code still reports it
        print(wrapped(f"{kind}{printable(line)}", sys.stderr), file=sys.stderr, flush=True)
    return code
