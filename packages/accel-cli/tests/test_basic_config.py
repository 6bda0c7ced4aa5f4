"""The file that is written without asking, read back by what reads it."""

import logging

import pytest

from accel_cli import basic_config, config_file, hardware, write_basic_config
from accel_cli.hardware import KINDS, Accelerators
from accel_core.config import read_config
from accel_core.environment.machine import HF_HOME
from accel_core.errors import ConfigError


def test_a_machine_without_accelerators(tmp_path, monkeypatch):
    monkeypatch.setattr(basic_config, "accelerators", lambda: hardware.NONE)
    path = tmp_path / "deep" / "conf.yaml"
    assert write_basic_config("BF16", path) == path
    values = read_config(path).values
    assert values["mixed_precision"] == "bf16"
    assert (values["num_processes"], values["distributed_type"]) == (1, "NO")
    # Another machine that reads the file may have accelerators.
    assert values["use_cpu"] is False
    assert config_file.settings(str(path)).options["num_processes"] == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_every_kind_of_accelerator_has_its_label(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(
        basic_config, "accelerators", lambda: Accelerators(kind.label, 4, kind.visible[0], present=4)
    )
    values = read_config(write_basic_config(save_location=str(tmp_path / "conf.yaml"))).values
    assert values["num_processes"] == 4
    assert values["distributed_type"].startswith("MULTI_")


def test_it_is_written_where_launch_looks_and_never_over_another(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(HF_HOME, str(tmp_path))
    path = write_basic_config()
    assert path == tmp_path / "accelerate" / "default_config.yaml"
    before = path.read_text()
    with caplog.at_level(logging.WARNING):
        assert write_basic_config("fp16") is False
    assert path.read_text() == before
    assert str(path) in caplog.text


def test_a_wrong_precision_leaves_no_file(tmp_path):
    with pytest.raises(ConfigError, match="mixed_precision"):
        write_basic_config("fp 16", tmp_path / "conf.yaml")
    assert not list(tmp_path.iterdir())
