"""What the command line knows, to hold the commands of other files to."""

from collections.abc import Sequence

from typer.main import get_group

import lorikeet


def unknown_words(words: Sequence[str]) -> list[str]:
    """Words of a `lorikeet` command that are no sub-command or option of ours; values are not looked at."""
    if words[0].rpartition("/")[2] != "lorikeet":
        return [words[0]]
    command, rest = get_group(lorikeet.app), list(words[1:])
    while commands := getattr(command, "commands", None):
        if rest[0] not in commands:
            return [rest[0]]
        command = commands[rest.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    return [word for word in rest if word.startswith("--") and word not in known]
