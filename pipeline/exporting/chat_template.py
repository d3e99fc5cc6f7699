"""The chat template for other programs, which hand it fewer variables."""

from __future__ import annotations

import json

from pipeline.plugin import ChatTemplate


def with_variables(template: ChatTemplate, empty_only: bool = False) -> str:
    """The source of a template that sets its variables itself, if it reads them.

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
    return "\n".join([*lines, template.source])  # Jinja drops the line break after a block
