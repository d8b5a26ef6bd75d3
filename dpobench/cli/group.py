"""A group of commands that guesses what a mistyped one was meant to be."""

import click

from dpobench.errors import UnknownName


class Group(click.Group):
    """A group that names the nearest command where there is none of the name given."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            UsageError: there is none of this name; the nearest is named.
        """
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(str(UnknownName("command", args[0], self.list_commands(ctx))))
        return super().resolve_command(ctx, args)
