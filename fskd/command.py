"""What all command lines share: exit codes, one line for every error, and the terminal."""

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from fskd.errors import FskdError, SettingError, TrainingError
from fskd.options import OPTIONS

# Typer carries click inside and exports only a part of its exceptions; this is the common base.
UsageError: Any = typer.BadParameter.__base__

STOPPED = "stopped; the same command goes on from the last saved state, if there is one"

Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE ...", help="Any setting by its dotted name."),
]


def with_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these ``OPTIONS`` after its first parameter, in place of ``**settings``."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        first, *own, _ = signature.parameters.values()
        asked = [_parameter(name) for name in names]
        # Typer reads this in place of what is written there.
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[first, *asked, *own]
        )
        return command

    return add


def _parameter(name: str) -> inspect.Parameter:
    option = OPTIONS[name]
    shown = typer.Option(
        f"--{name.replace('_', '-')}",
        help=option.help,
        metavar=option.metavar,
        show_default=option.default or True,
        rich_help_panel=option.panel,
    )
    kind: Any = bool if option.flag else str | None
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=False if option.flag else None,
        annotation=Annotated[kind, shown],
    )


def examples(program: str, pairs: Sequence[tuple[str, str]]) -> str:
    """What stands under ``--help``.

    Args:
        program: How the program is called.
        pairs: What somebody may want, and the options that do it.
    """
    shown = (f"{what}:\n\n    [cyan]{program} {options}[/cyan]" for what, options in pairs)
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(shown)


def run_command(
    commands: typer.Typer, name: str, arguments: Sequence[str] | None, stopped: str = STOPPED
) -> int:
    """Runs a command line; returns the exit code (2 for bad input, 1 for failed training).

    Args:
        commands: The command line.
        name: How it is called.
        arguments: What follows the name; of this process if None.
        stopped: What is said after Ctrl-C.
    """
    given = spread_set(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = typer.main.get_command(commands).main(given, name, standalone_mode=False)
        if code == 130:
            return _fail(stopped, 130, False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        return _fail(error.format_message(), 2, debug)
    except TrainingError as error:
        return _fail(str(error), 1, debug)
    except FskdError as error:
        return _fail(str(error), 2, debug)
    except Exception as error:
        if debug:
            raise
        where = "this is a fault of fskd or of a network of yours; --debug shows where"
        return _fail(f"{type(error).__name__}: {error} ({where})", 1, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(stopped, 130, False)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def spread_set(arguments: Sequence[str]) -> list[str]:
    """Repeats ``--set`` before each of several values that follow it.

    Example:
        >>> spread_set(["--set", "a=1", "b.c=2", "--quiet"])
        ['--set', 'a=1', '--set', 'b.c=2', '--quiet']
    """
    given: list[str] = []
    inside = False
    for argument in arguments:
        if inside and "=" in argument and not argument.startswith("-"):
            if given[-1] != "--set":
                given.append("--set")
        else:
            inside = argument == "--set"
        given.append(argument)
    return given


def make_console() -> Console:
    """Stdout, wide enough for the tables when it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def whole(option: str, text: str, least: int) -> int:
    """The whole number that an option was given; SettingError if it is none or too small."""
    if not text.isdecimal() or int(text) < least:
        raise SettingError(option, f"'{text}'", f"a whole number of at least {least}")
    return int(text)
