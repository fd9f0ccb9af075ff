"""The command line as a whole: speed, versions, completion, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click
import pytest

import mdp_fx
from mdp_fx import cli
from mdp_fx.errors import BudgetError
from tests.cli.networks import SHAPE, TINY
from tests.cli.running import Run
from tests.passes.spaces import chain_space

COMMANDS = (
    *("prune", "inspect", "score", "solve", "frontier", "targets", "profile", "table", "bench", "evaluate"),
    *("diff", "apply", "train", "finetune", "export"),
)
HEAVY = ("torch", "numpy", "pyomo", "onnx", "onnxruntime", "torchvision", "timm", "plotly")


def imported_after(*args: str) -> set[str]:
    """Modules that `mdp-fx ARGS` imports in a fresh process."""
    code = (
        "import sys\n"
        "from mdp_fx.cli import main\n"
        "try:\n"
        f"    main({list(args)!r})\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print(' '.join(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("args", [("--help",), ("prune", "--help"), ("--version",)])
def test_help_and_version_import_nothing_heavy(args: tuple[str, ...]) -> None:
    modules = imported_after(*args)
    assert "mdp_fx.cli" in modules
    assert not modules & {*HEAVY, "rich"}


def test_help_lists_every_command(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "table"])
def test_every_command_has_help_with_json_and_verbose(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert done.code == 0
    assert "--json" in done.out
    assert "--verbose" in done.out


def test_version_names_torch_and_the_runtime(run: Run) -> None:
    done = run("--version")
    assert done.code == 0
    assert done.out.startswith(f"mdp-fx {mdp_fx.__version__}, Python {sys.version.split()[0]}")
    assert f"torch {metadata.version('torch')}" in done.out
    assert "onnxruntime" in done.out


def test_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mdp_fx", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: mdp-fx ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("_MDP_FX_COMPLETE", f"{shell}_source")
    done = run()
    assert done.code == 0
    assert "_MDP_FX_COMPLETE" in done.out
    assert "mdp-fx" in done.out


@pytest.mark.parametrize(
    ("words", "index", "expected"),
    [
        ("mdp-fx pr", "1", "plain,prune"),
        ("mdp-fx prune mo", "2", "file,mo"),
        ("mdp-fx prune --rec", "2", "plain,--recipe"),
    ],
)
def test_completion_answers(words: str, index: str, expected: str, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("_MDP_FX_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", index)
    assert expected in run().out.splitlines()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("prun",), "Did you mean 'prune'"),
        (("prune",), "Missing argument 'MODEL'"),
        (("prune", "m.pt", "--input", "3x"), "'3x' is not a shape such as 3x224x224"),
        (("prune", "m.pt", "--input", "0x4"), "is not a shape"),
        (("prune", "m.pt", "--batch", "0"), "--batch"),
        (("prune", "m.pt", "--step", "0"), "--step"),
        (("prune", "m.pt", "--method", "best"), "'best' is not one of"),
        (("prune", "m.pt", "--importance", "l3"), "'l3' is not one of"),
        (("prune", "m.pt", "--gap", "little"), "is not a percentage such as 0.1%"),
        (("prune", "m.pt", "--gap", "100%"), "'100%' is not at least 0% and less than 100%\n"),
        (("prune", "m.pt", "--latncy", "50%"), "No such option"),
        (("prune", "m.pt", "--min-keep", "101%"), "is not at least 0% and at most 100%\n"),
        (("prune", "m.pt", "--min-keep", "10"), "and at most 100%; write 10% for that many per cent"),
        (("prune", "m.pt", "--fix", "conv1"), "'conv1' is not of the form NAME=SIZE"),
        (("prune", "m.pt", "--fix", "conv1=few"), "'few' is no size to hold 'conv1' at"),
        (("solve", "s.json", "--fix", "a=1", "--fix", "a=2"), "'a' is given twice"),
        (("solve", "s.json", "--limit", "=60%"), "'=60%' is not of the form NAME=BUDGET"),
        (("solve", "s.json", "--solver", "guess"), "'guess' is not one of"),
        (("solve", "s.json", "--max-removed", "-1"), "--max-removed"),
        (("solve",), "Missing argument 'SPACE'"),
        (("frontier",), "Missing argument 'SOURCE'"),
        (("frontier", "s.json", "--points", "1"), "--points"),
        (("frontier", "s.json", "--method", "uniform"), "'uniform' is not one of"),
        (("export", "m.pt", "--to", "tflite", "-o", "m"), "'tflite' is not one of 'onnx', 'tensorrt'"),
        (("apply", "m.pt", "-o", "m"), "Give one of --recipe and --masks"),
        (("bench",), "Missing argument"),
        (("bench", "m.pt", "--time-limit", "-1"), "'--time-limit': -1 is not a number of seconds above 0"),
        (("solve", "s.json", "--time-limit", "nan"), "nan is not a number of seconds above 0"),
        (("prune", "m.pt", "--time-limit", "0"), "0 is not a number of seconds above 0"),
    ],
)
def test_usage_errors_exit_2(run: Run, args: tuple[str, ...], says: str) -> None:
    done = run(*args)
    assert done.code == 2
    assert done.out == ""
    assert says in done.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("prune", "m.pt", "-o", "m.pt"), "--output m.pt"),
        (("prune", "m.pt", "-o", "s.pt", "--recipe", "m.pt"), "--recipe m.pt"),
        (("apply", "m.pt", "--recipe", "r.json", "-o", "m.pt"), "--output m.pt"),
        (("apply", "m.pt", "--recipe", "r.json", "-o", "r.json"), "--output r.json"),
        (("export", "m.pt", "-o", "m.pt"), "--output m.pt"),
    ],
)
def test_no_input_is_overwritten(run: Run, folder: Path, args: tuple[str, ...], says: str) -> None:
    for name in ("m.pt", "r.json"):
        (folder / name).write_bytes(b"dear")
    done = run(*args, "--force")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"mdp-fx: error: {says} is what is read; name another output file\n"
    assert {path.read_bytes() for path in folder.iterdir()} == {b"dear"}


def test_user_errors_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise BudgetError("first\n  second")

    monkeypatch.setattr("mdp_fx.api.inspect", fail)
    done = run("inspect", TINY, *SHAPE)
    assert (done.code, done.out, done.err) == (1, "", "mdp-fx: error: first second\n")


@pytest.mark.parametrize("measured", [0, 1])
def test_interruption_says_what_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch, measured: int) -> None:
    def interrupt(*_args: object, progress: Callable[[int, int, str], None], **_kwargs: object) -> None:
        for i in range(measured):
            progress(i + 1, 9, "conv")
        raise KeyboardInterrupt

    monkeypatch.setattr("mdp_fx.api.profile", interrupt)
    done = run("profile", TINY, *SHAPE)
    assert (done.code, done.out) == (130, "")
    kept = "; measurements made so far are kept" if measured else ""
    assert done.err.strip() == f"mdp-fx: interrupted{kept}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_full_disk_is_one_line(folder: Path, more: tuple[str, ...]) -> None:
    chain_space().save(folder / "chain.json")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "mdp_fx", "solve", "chain.json", "--budget", "100%", *more]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "mdp-fx: error: cannot write to stdout: disk full; free some space or name a file on another disk\n",
    )


def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ModuleNotFoundError("No module named 'pyomo.environ'", name="pyomo.environ")

    chain_space().save(folder / "chain.json")
    monkeypatch.setattr("mdp_fx.decision.solve", fail)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    for package, args in (
        ("pyomo", ("solve", "chain.json")),
        ("plotly", ("frontier", "chain.json", "--plot", "c.html")),
    ):
        done = run(*args)
        assert (done.code, done.out) == (1, "")
        assert done.err == f"mdp-fx: error: this needs {package}, which is not installed: pip install {package}\n"


def test_a_missing_module_of_our_own_is_a_bug(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mdp_fx.report.tables", None)
    with pytest.raises(ModuleNotFoundError, match=r"mdp_fx\.report\.tables"):
        run("inspect", TINY, *SHAPE)


@pytest.mark.parametrize("command", ["prune", "solve", "frontier", "bench"])
def test_defaults_are_shown_plainly(run: Run, command: str) -> None:
    assert not re.findall(r"default: \(.*", run(command, "--help").out)


def test_unexpected_errors_are_tracebacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("mdp_fx.api.inspect", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("inspect", TINY, *SHAPE)


def test_every_command_is_a_click_command() -> None:
    context = click.Context(cli.cli)
    assert tuple(cli.cli.list_commands(context)) == COMMANDS
    for name in COMMANDS:
        command = cli.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
    assert cli.cli.get_command(context, "nothing") is None
