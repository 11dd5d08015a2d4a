"""What a command answers without running: `--help` on one screen, `--help GROUP` with a group's keys, `--cfg job`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from src.config.composition import groups
from src.config.overrides import unknown, written
from src.core.errors import ConfigError
from src.core.logging import console
from src.core.paths import REPOSITORY

if TYPE_CHECKING:
    from src.config.descriptions import SettingsDescription

HELP, CFG = "--help", "--cfg"
#: `--help all`: every key
ALL = "all"
#: of a group's description, on a screen that all of them have to fit
_GROUP_LINES = 2


@dataclass(frozen=True)
class HelpRequest:
    """What is asked in place of a run: help (about a topic, or in general), or the composed config."""

    option: str
    topic: str = ""


def help_request(arguments: Sequence[str]) -> tuple[HelpRequest | None, list[str]]:
    """Find ``--help``, ``--help TOPIC`` or ``--cfg job`` in a command line.

    Args:
        arguments: the command line without the program.

    Returns:
        What is asked, None where nothing is, and the other arguments.

    Raises:
        ConfigError: ``--cfg`` asks for something else than ``job``.
    """
    for place, argument in enumerate(arguments):
        name, joined, value = argument.partition("=")
        option = {"-h": HELP, "-c": CFG}.get(name, name)
        if option not in (HELP, CFG):
            continue
        after = [*arguments[place + 1 :], ""][0]
        follows = not joined and after != "" and "=" not in after and not after.startswith("-")
        topic = after if follows else value
        if option == CFG and topic != "job":
            raise ConfigError.one("option", f"{CFG} {topic}".strip(), "prints the composed config", f"write {CFG} job")
        return HelpRequest(option, topic), [*arguments[:place], *arguments[place + 1 + follows :]]
    return None, list(arguments)


def show_help(
    command: str,
    description: str,
    examples: Sequence[tuple[str, str]],
    config_name: str,
    described: SettingsDescription,
    content: Mapping[str, Any],
) -> None:
    """Print what a command does, examples, and its groups, on one screen.

    Args:
        command: its name, as in ``src.exp.<name>`` and ``cmd/<name>.sh``.
        description: what it does.
        examples: arguments, each with what they do.
        config_name: its config in `conf/`.
        described: its settings.
        content: the config that the other arguments compose.
    """
    options = groups(config_name)
    chosen = "\\[group=option ...] " if options else ""
    console.print(f"[bold]Usage:[/] python -m src.exp.{command} {chosen}\\[key=value ...]")
    script = f"cmd/{command}.sh"
    if (REPOSITORY / script).exists():
        console.print(f"       ./{script} does the same with the checkout's own environment.")
    for paragraph in description.strip().split("\n\n"):
        # lines end where they end in the code, which is wider than many a terminal
        console.print()
        console.print(Text(" ".join(paragraph.split())), soft_wrap=False)
    console.print()
    console.print("[bold]Examples[/] (arguments of the command)")
    console.print(_table((arguments or "(none)", meaning) for arguments, meaning in examples))
    if options:
        console.print("\n[bold]Groups[/] (group=option; keys and all options: --help GROUP)")
        width = _GROUP_LINES * (console.width - max(map(len, options)) - 2)
        about = {name: str(field["about"]).rstrip(".") for name, field in described["fields"].items()}
        console.print(_table((name, _group(about[name], found, width)) for name, found in options.items()))
    console.print()
    if own := [key for key, _, _ in rows(described, content) if key.split(".")[0] not in options]:
        console.print(Text.assemble(("Keys of its own", "bold"), f" (--help KEY): {', '.join(own)}"), soft_wrap=False)
    if options:
        console.print("params=FILE starts from the keys of a best_params.yaml; other arguments win.")
    console.print("--help all: every key; --cfg job: print the composed config and stop.")


def _group(about: str, options: Sequence[str], width: int) -> str:
    """What a group is about, and of its options as many as there is room for; one alone is no choice."""
    if len(options) < 2:
        return about
    more, shown = f", … ({len(options)})", list(options)
    while len(f"{about}: {', '.join(shown)}") + (len(shown) < len(options)) * len(more) > width and len(shown) > 1:
        shown.pop()
    return f"{about}: {', '.join(shown)}{more if len(shown) < len(options) else ''}"


def show_keys(
    topic: str, described: SettingsDescription, content: Mapping[str, Any], options: Sequence[str] = ()
) -> None:
    """Print the keys of a group, below a key, or of that name, with value and meaning.

    Args:
        topic: ``all``, a group, a dotted key, or the last part of one.
        described: the command's settings.
        content: the config that the other arguments compose.
        options: of a group.

    Raises:
        ConfigError: nothing is called so.
    """
    every = list(rows(described, content))
    found = [row for row in every if topic == ALL or row[0] == topic or row[0].startswith(f"{topic}.")]
    found = found or [row for row in every if topic in row[0].split(".")]
    if not found:
        parts = dict.fromkeys(part for key, _, _ in every for part in (key.split(".")[0], key, key.rsplit(".", 1)[0]))
        raise ConfigError([unknown("group or key", topic, parts)])
    if (group := described["fields"].get(topic)) and group["kinds"]:
        console.print(f"{topic}: {_kind_of(content[topic], group['kinds'])['about']}", markup=False)
        if len(options) > 1:
            console.print(Text(f"options ({topic}=…): {', '.join(options)}"), soft_wrap=False)
        console.print()
    console.print(_table([("key", "value", "meaning"), *found]))


def rows(
    described: SettingsDescription, content: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Every key of a command with its value, as the command line accepts it, and its meaning.

    Args:
        described: settings.
        content: the composed config of them.
        prefix: what their keys begin with.
    """
    for name, field in described["fields"].items():
        value = content.get(name)
        if field["kinds"] and isinstance(value, Mapping):
            yield from rows(_kind_of(value, field["kinds"]), value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", written(value), field["note"]


def _kind_of(content: Mapping[str, Any], kinds: Mapping[str, SettingsDescription]) -> SettingsDescription:
    """The settings among those that a field can hold which the config names, or those that have its keys."""
    named = [kind for name, kind in kinds.items() if name[1:] in content.values()]
    fitting = [kind for kind in kinds.values() if kind["fields"].keys() == content.keys()]
    return [*named, *fitting, *kinds.values()][0]


def _table(lines: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)  # a name that is broken over two lines cannot be searched for or copied
    for line in lines:
        while len(table.columns) < len(line):
            table.add_column(overflow="fold")  # a value is shown whole, as it can be written
        table.add_row(*map(escape, line))
    return table
