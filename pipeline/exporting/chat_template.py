"""The chat template for other programs, which hand it other variables."""

from __future__ import annotations

import json

from pipeline.plugin import ChatTemplate


def portable_template(template: ChatTemplate, empty_only: bool = False) -> str:
    """The source of a template that sets its variables itself, where it reads them.

    The function `strftime_now`, which other programs have, gets a name that is not defined: as here, the ids do not
    depend on the date.

    Args:
        template: The template.
        empty_only: Whether to set only empty ones, for a program that hands it the others.
    """
    set_here = {
        name: value
        for name, value in template.variables.items()
        if name in template.source and not (empty_only and value)
    }
    lines = [f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in set_here.items()]
    source = template.source.replace("strftime_now", "no_strftime_now")
    return "\n".join([*lines, source])  # Jinja drops the line break after a block
