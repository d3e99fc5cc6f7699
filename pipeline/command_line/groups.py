"""Groups and commands that list or parse their arguments in another way than click."""

from __future__ import annotations

from itertools import pairwise

import click


class Group(click.Group):
    """Lists its commands in the order in which they are defined: the order in which people run them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class PluginsGroup(Group):
    """Accepts `plugins losses` for `plugins list losses`."""

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


class CompareCommand(click.Command):
    """Gives `--against` all the names that follow it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--against" in args:
            start = args.index("--against")
            valued = {name for each in self.params for name in each.opts if not getattr(each, "is_flag", False)}
            rest = [
                each if each.startswith("-") or before in valued - {"--against"} else f"--against={each}"
                for before, each in pairwise(args[start:])
            ]
            args = args[:start] + (rest or ["--against"])
        return super().parse_args(ctx, args)
