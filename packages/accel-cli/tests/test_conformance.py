"""Our commands and launchers do what every implementation must."""

import pytest

from accel_cli.commands.env import Env
from accel_cli.commands.launch import Launch
from accel_cli.launchers.elastic import ElasticLauncher
from accel_cli.launchers.exec import ExecLauncher
from accel_core.testing.conformance import CommandConformance, LauncherConformance


class TestLaunch(CommandConformance):
    bad_arguments = (
        (),
        ("--num_processes", "two", "script.py"),
        ("--dynamo_backend", "fast", "script.py"),
        ("--no-such-option", "script.py"),
    )

    @pytest.fixture
    def command(self):
        return Launch()


class TestEnv(CommandConformance):
    bad_arguments = (("--no-such-option",), ("--config_file",))

    @pytest.fixture
    def command(self):
        return Env()


class TestExec(LauncherConformance):
    @pytest.fixture
    def launcher(self):
        return ExecLauncher()


class TestElastic(LauncherConformance):
    processes = (2,)

    @pytest.fixture
    def launcher(self):
        pytest.importorskip("torch")
        return ElasticLauncher()
