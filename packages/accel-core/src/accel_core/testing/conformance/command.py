"""What every implementation of `Command` must do."""

from __future__ import annotations

import argparse
from typing import ClassVar

import pytest

from accel_core.protocols import Command

from .base import Conformance, fresh_python, importable


class CommandConformance(Conformance):
    """Override ``command``; give ``bad_arguments`` that its parser must refuse."""

    bad_arguments: ClassVar[tuple[tuple[str, ...], ...]] = (("--no-such-option",),)

    @pytest.fixture
    def command(self) -> Command:
        """Return the command, as its entry point's factory does."""
        raise NotImplementedError

    @pytest.fixture
    def parser(self, command: Command) -> argparse.ArgumentParser:
        """Return a parser that the command configured."""
        parser = argparse.ArgumentParser(prog=f"accel {command.name}")
        command.configure(parser)
        return parser

    def test_it_is_a_command(self, command: Command) -> None:
        """Its name is a word of the command line."""
        assert isinstance(command, Command)
        assert command.name
        assert command.name == command.name.lower()
        assert not set(command.name) & set(" \t\n/")

    def test_help_is_one_line(self, command: Command) -> None:
        """It fits into ``accel --help``."""
        assert command.help.strip()
        assert "\n" not in command.help

    def test_parser_is_built_without_torch(self, command: Command) -> None:
        """Importing the class and building its parser imports no torch."""
        if not importable(command):
            pytest.skip("the class of the command cannot be imported by name")
        body = "import argparse\nClass().configure(argparse.ArgumentParser())\nprint(*sys.modules)"
        done = fresh_python(command, body)
        assert done.returncode == 0, done.stderr
        assert "torch" not in done.stdout.split()

    def test_help_option(self, parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
        """``--help`` prints and exits with 0."""
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(["--help"])
        assert caught.value.code == 0
        assert "usage" in capsys.readouterr().out

    def test_every_argument_is_explained(self, parser: argparse.ArgumentParser) -> None:
        """No argument without help; hidden ones say so with SUPPRESS."""
        bare = [action.dest for action in parser._actions if not action.help]
        assert not bare

    def test_bad_arguments_exit_with_2(
        self, parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """They are refused on standard error."""
        for arguments in self.bad_arguments:
            with pytest.raises(SystemExit) as caught:
                parser.parse_args(list(arguments))
            assert caught.value.code == 2, arguments
            assert "error" in capsys.readouterr().err, arguments


__all__ = ["CommandConformance"]
