"""What Ctrl-C says where a command does nothing about it itself."""

import importlib
import sys

import pytest
import typer

# The package holds a function of the same name.
entry = importlib.import_module("retinastream.cli.main")


def run(monkeypatch, body):
    app = typer.Typer()
    app.command()(body)
    monkeypatch.setattr(entry, "app", app)
    monkeypatch.setattr(sys, "argv", ["retinastream"])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    return ended.value.code


def test_ctrl_c_is_said_and_exits_with_130(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run(monkeypatch, interrupted) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("code", [0, 1, 130])
def test_an_exit_of_the_command_itself_stays_as_it_is(monkeypatch, capsys, code):
    def leave() -> None:
        raise typer.Exit(code)

    assert run(monkeypatch, leave) == code
    assert capsys.readouterr().err == ""
