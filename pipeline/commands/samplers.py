"""The samplers of generate and chat: those of params.yaml, with changes by options and chat commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.core.errors import ParamsError
from pipeline.plugin.registry import Registry

ORDER = ("temperature", "top_k", "top_p")
"""The order of these samplers when one is added."""

Options = Mapping[str, Mapping[str, Any]]


def with_option(
    registry: Registry, names: Sequence[str], options: Options, key: str, value: Any
) -> tuple[list[str], Options]:
    """Sets an option of a sampler, and adds the sampler if it is not in use; returns the new names and options.

    Args:
        registry: The available samplers.
        names: The samplers in use, in order.
        options: The options by sampler.
        key: `SAMPLER.OPTION`, or `SAMPLER` if it has a single option.
        value: The value of the option.

    Raises:
        ParamsError: the sampler does not exist, or the option must be named because it has not exactly one.
    """
    name, _, option = key.partition(".")
    known = list(type(registry.build("samplers", name, {}, "samplers")).model_fields)
    if not option:
        if len(known) != 1:
            choice = f": /set {name}.{known[0]} …" if known else f", only /samplers {name}"
            raise ParamsError(f"{name} has {len(known) or 'no'} options{choice}")
        option = known[0]
    changed = {**options, name: {**options.get(name, {}), option: value}}
    return (list(names) if name in names else _added(names, name)), changed


def _added(names: Sequence[str], name: str) -> list[str]:
    """Adds a name: before the names that come later in ORDER, else at the end."""
    later = ORDER[ORDER.index(name) + 1 :] if name in ORDER else ()
    index = next((number for number, each in enumerate(names) if each in later), len(names))
    return [*names[:index], name, *names[index:]]


def with_flags(
    registry: Registry, names: Sequence[str], options: Options, flags: Mapping[str, float | None]
) -> tuple[list[str], Options]:
    """Applies `--temperature`, `--top-k` and `--top-p` (None: not given); returns the new names and options.

    Raises:
        ParamsError: a value is out of bounds.
    """
    chosen = list(names)
    for name, value in flags.items():
        if value is None:
            continue
        chosen, options = with_option(registry, chosen, options, name, value)
        flag = f"--{name.replace('_', '-')}"
        try:
            registry.build("samplers", name, options, "samplers")
        except ParamsError as error:
            (option,) = [key for key, each in options[name].items() if each is value] or [""]
            raise ParamsError(str(error).replace(f"samplers.{name}.{option}", flag)) from None
    return chosen, options


class Settings:
    """The samplers with their options, and the number of tokens per turn."""

    def __init__(self, registry: Registry, names: Sequence[str], options: Options, tokens: int) -> None:
        self.registry, self.tokens = registry, tokens
        self.use(names, options)

    def use(self, names: Sequence[str], options: Options) -> None:
        """Replaces the samplers.

        Raises:
            ParamsError: a sampler does not exist, or an option is invalid. The settings are unchanged then.
        """
        self.samplers = self.registry.build_all("samplers", names, options, "samplers")
        self.names, self.options = list(names), options

    def change(self, key: str, value: str) -> None:
        """Sets the option `key` (`SAMPLER.OPTION`, or `SAMPLER` if it has a single option); adds the sampler if
        needed."""
        parsed: Any = value
        with suppress(ValueError):  # a value that is not JSON is a string
            parsed = json.loads(value)
        self.use(*with_option(self.registry, self.names, self.options, key, parsed))

    def __str__(self) -> str:
        return "; ".join(filter(None, [", ".join(map(_describe, self.samplers)), f"{self.tokens} tokens a turn"]))


def _describe(sampler: Any) -> str:
    values = sampler.model_dump()
    only = len(values) == 1
    return " ".join([sampler.name, *(f"{value}" if only else f"{name}={value}" for name, value in values.items())])
