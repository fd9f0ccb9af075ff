"""Every command and program in the README runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from bench.readme_tables import filled
from mdp_fx.cli import cli, main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_FX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_own_folder")
def test_shell_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 6
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "mdp-fx"
        main(words[1:])
        assert capsys.readouterr().out, command


@pytest.mark.usefixtures("_own_folder")
def test_python_runs() -> None:
    (program,) = blocks("python")
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    assert Path("slim.onnx").exists()
    assert "torch" in sys.modules


def test_every_option_in_the_readme_exists() -> None:
    context = click.Context(cli)
    commands = [command for name in cli.list_commands(context) if (command := cli.get_command(context, name))]
    commands += [
        inner for command in commands if isinstance(command, click.Group) for inner in command.commands.values()
    ]
    known = {option for command in [cli, *commands] for param in command.params for option in param.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert len(named) >= 15
    assert named <= known


def test_the_tables_are_those_of_the_results() -> None:
    assert filled(README) == README, "python bench/readme_tables.py"


@pytest.mark.parametrize("mark", ["<!-- speedup:begin -->", "<!-- latency:end -->", "<!-- accuracy:begin -->"])
def test_a_table_without_its_place_is_told(mark: str) -> None:
    for text in (README.replace(mark, ""), README.replace(mark, f"{mark}\n\n{mark}"), README + f"\n{mark}\n"):
        with pytest.raises(ValueError, match=mark):
            filled(text)


def test_the_make_targets_exist() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^)h][^)]*)\)", README)
    assert links
    for link in links:
        assert (root / link).exists(), link
