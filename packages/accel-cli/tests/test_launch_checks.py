"""What the elastic launcher refuses before it imports torch or starts anything."""

import socket

import pytest

from accel_cli.launchers.elastic import ElasticLauncher, torchrun_arguments
from accel_cli.launchers.exec import ExecLauncher
from accel_core.errors import LaunchError
from accel_core.protocols.command import Launcher, LaunchSpec


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("")
    return str(path)


@pytest.fixture
def busy():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("cls", [ElasticLauncher, ExecLauncher])
def test_the_launchers_satisfy_the_protocol(cls):
    assert isinstance(cls(), Launcher)


def test_a_busy_port_is_reported_before_anything_starts(folder, busy):
    done = folder.launch("--num_processes", "2", "--main_process_port", busy, "show.py")
    assert done.returncode == 2
    assert f"Port {busy} cannot be used" in done.stderr
    assert "--main_process_port" in done.stderr
    assert not (folder.path / "shown.0.json").exists()


def test_the_port_of_another_machine_is_not_ours_to_check(script, busy):
    spec = LaunchSpec(script=script, num_processes=2, num_machines=2, main_address="10.0.0.1", main_port=busy)
    with pytest.raises(LaunchError, match="cannot be used"):
        ElasticLauncher().check(spec)
    other = LaunchSpec(
        script=script,
        num_processes=2,
        num_machines=2,
        machine_rank=1,
        main_address="10.0.0.1",
        main_port=busy,
    )
    ElasticLauncher().check(other)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"num_processes": 3, "num_machines": 2}, "cannot be shared equally by 2 machines"),
        ({"num_processes": 1, "num_machines": 2}, "cannot be shared equally"),
        ({"num_processes": 4, "num_machines": 2, "machine_rank": 2}, "--machine_rank 2 is not one of"),
        ({"num_processes": 4, "num_machines": 2}, "where machine 0 is"),
        ({"num_processes": 4, "num_machines": 2, "main_address": "a", "main_port": 0}, "where machine 0 is"),
        ({"num_processes": 2, "options": {"colour": "red"}}, "no option colour"),
    ],
)
def test_impossible_sets_of_machines(script, sizes, text):
    with pytest.raises(LaunchError, match=text):
        ElasticLauncher().check(LaunchSpec(script=script, **sizes))


def test_one_process_is_all_that_exec_starts(script):
    with pytest.raises(LaunchError, match="starts one process, not 2"):
        ExecLauncher().check(LaunchSpec(script=script, num_processes=2))
    with pytest.raises(LaunchError, match="no use for log_dir"):
        ExecLauncher().check(LaunchSpec(script=script, options={"log_dir": "x"}))


def test_settings_in_the_words_of_torchrun(script):
    spec = LaunchSpec(
        script=script,
        arguments=("--nnodes", "9"),
        num_processes=8,
        num_machines=2,
        machine_rank=1,
        main_address="10.0.0.1",
        main_port=29501,
        options={"rdzv_backend": "c10d", "rdzv_conf": "timeout=30", "max_restarts": "2", "quiet": "true"},
    )
    words = torchrun_arguments(spec)
    assert words[: words.index("--no-python")] == [
        "--nnodes=2",
        "--nproc-per-node=4",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=10.0.0.1:29501",
        "--rdzv-id=accel",
        "--rdzv-conf=timeout=30",
        "--max-restarts=2",
    ]
    assert words[-3:] == [script, "--nnodes", "9"]
