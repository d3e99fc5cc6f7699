"""The samplers of generate and chat: those that params.yaml chooses, and what a person changes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import ParamsError
from pipeline.plugin.registry import Registry

ORDER = ("temperature", "top_k", "top_p")
"""The order of these samplers, where one of them is added to the others."""

Options = Mapping[str, Mapping[str, Any]]


def with_option(
    registry: Registry, names: Sequence[str], options: Options, place: str, value: Any
) -> tuple[list[str], Options]:
    """The samplers' names and options with one option set; its sampler is added if it is not among them.

    Args:
        registry: The samplers that there are.
        names: The samplers in use, in their order.
        options: Options by sampler.
        place: `sampler.option`, or `sampler`, if it has only one.
        value: The option's value.

    Raises:
        ParamsError: there is no such sampler, or it has not exactly one option and none is named.
    """
    name, _, option = place.partition(".")
    known = list(type(registry.build("samplers", name, {}, "samplers")).model_fields)
    if not option:
        if len(known) != 1:
            choice = f": /set {name}.{known[0]} …" if known else f", only /samplers {name}"
            raise ParamsError(f"{name} has {len(known) or 'no'} options{choice}")
        option = known[0]
    changed = {**options, name: {**options.get(name, {}), option: value}}
    return (list(names) if name in names else _added(names, name)), changed


def _added(names: Sequence[str], name: str) -> list[str]:
    """The names with one more: before those that come later in ORDER, else at the end."""
    later = ORDER[ORDER.index(name) + 1 :] if name in ORDER else ()
    place = next((number for number, each in enumerate(names) if each in later), len(names))
    return [*names[:place], name, *names[place:]]


def with_flags(
    registry: Registry, names: Sequence[str], options: Options, flags: Mapping[str, float | None]
) -> tuple[list[str], Options]:
    """The samplers' names and options with what `--temperature`, `--top-k` and `--top-p` set (None: nothing).

    Raises:
        ParamsError: a value is out of the sampler's bounds.
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
