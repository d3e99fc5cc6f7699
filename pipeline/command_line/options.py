"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.core.paths import Paths

if TYPE_CHECKING:
    from pipeline.params.params import Params

params_option = click.option(
    "--params", "params_file", type=click.Path(path_type=Path), default=Path("params.yaml"),
    show_default=True, metavar="FILE", help="Read params from this file.",
)  # fmt: skip


def with_params(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of the commands that read params.yaml."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
        help="Override one value of params.yaml for this run. Repeatable.",
    )(command)  # fmt: skip
    return params_option(command)


def read_params(params_file: Path, overrides: tuple[str, ...]) -> tuple[Params, Paths]:
    """The params that these options give, and the paths of the project in the current folder."""
    from pipeline.params.reader import load_params

    return load_params(params_file, overrides), Paths(Path.cwd())


weights_option = click.option(
    "--weights", type=click.Choice(["best", "last"]), help="Which weights of the checkpoint to use."
)


def generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of the commands that generate text."""
    options = [
        click.option("--tokens", type=click.IntRange(1, 2**20), help="Maximum number of new tokens."),
        click.option(
            "--sampler", "samplers", multiple=True, metavar="NAME",
            help="Use this sampler. Repeatable; applied in order.",
        ),
        click.option(
            "--temperature", type=float, metavar="T",
            help="Divide the logits by T; 0: always the most likely token.",
        ),
        click.option("--top-k", type=int, metavar="K", help="Sample from the K most likely tokens."),
        click.option(
            "--top-p", type=float, metavar="P",
            help="Sample from the most likely tokens that add up to probability P.",
        ),
        click.option(
            "--seed", type=click.IntRange(0, 2**63 - 1), help="Random seed. The same seed gives the same text."
        ),
        click.option(
            "--stop", "stops", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable."
        ),
        weights_option,
        click.option(
            "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True,
            help="Precision of the weights. auto: the fastest one on this machine.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


system_option = click.option(
    "--system", metavar="TEXT", help="The system message, if the tokenizer has a chat template."
)
