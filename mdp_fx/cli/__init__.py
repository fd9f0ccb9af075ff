"""The command line, one file per command. Importing it imports neither torch nor any solver."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from mdp_fx.errors import MdpFxError

_COMMANDS = {
    "prune": "Make a network faster: prune it to a latency budget on a target.",
    "inspect": "Show what of a network can be pruned, and why the rest cannot.",
    "score": "Score what the channels of a network are worth, and keep the scores for later runs.",
    "solve": "Decide on a saved search space: what to keep within budgets, and a proof.",
    "frontier": "Show how much importance is kept at every latency: the whole curve.",
    "targets": "List where latency can be measured, and what this machine has of it.",
    "profile": "Measure the latency tables of a network on a target.",
    "table": "Show, share and clean up the latency tables that were measured.",
    "bench": "Time networks against each other on a target.",
    "evaluate": "Measure how well a detector detects: average precision on data with boxes.",
    "diff": "Compare two networks module by module.",
    "apply": "Apply a recipe or layer masks to the dense network they were made for.",
    "train": "Train by a config file: gather importance, prune, fine-tune, with checkpoints.",
    "finetune": "Fine-tune a slim network, with its dense network as a teacher if named.",
    "export": "Export a network to ONNX or TensorRT, checked against torch.",
}


class _LazyGroup(click.Group):
    """Imports a command's module when the command is asked for, not for the list of commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mdp_fx.cli.{cmd_name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


def _show_versions(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib import metadata

    import mdp_fx

    parts = [f"mdp-fx {mdp_fx.__version__}", f"Python {sys.version.split()[0]}"]
    for package in ("torch", "onnxruntime-gpu", "onnxruntime", "onnx", "highspy", "pyomo"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    click.echo(", ".join(parts))
    ctx.exit()


GARBAGE_THRESHOLD = 200_000
"""New objects after which Python looks for cycles."""


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with:  mdp-fx prune model.pt",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show versions and exit.",
)
def cli() -> None:
    """Structured pruning of vision networks under a measured latency budget."""


def main(args: Sequence[str] | None = None) -> Any:
    """Runs the command line: user errors are one line and exit code 1, usage errors exit code 2."""
    # Imports and exports make millions of objects that live on: looking for cycles among them takes a tenth of the run.
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        return cli.main(args=list(args) if args is not None else None, prog_name="mdp-fx", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        # click makes an Abort of an interruption, which may say what becomes of the work.
        told = stop.__cause__ if isinstance(stop, click.Abort) else stop
        click.echo("; ".join(("mdp-fx: interrupted", *map(str, told.args if told else ()))), err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MdpFxError as error:
        click.echo(f"mdp-fx: error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "mdp_fx"):
            raise  # A mistake of ours.
        click.echo(f"mdp-fx: error: this needs {missing}, which is not installed: pip install {missing}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
