"""From options, config file, environment and hardware to what is started."""

import pytest

from accel_cli import settings
from accel_cli.config_file import NOTHING, FromFile
from accel_cli.discovery import Offer
from accel_cli.hardware import Accelerators
from accel_core.config.layers import CONFIG_FILE, Layer
from accel_core.errors import ConfigError, LaunchError


@pytest.fixture
def plan(monkeypatch):
    def make(given=None, *, file=NOTHING, environ=None, gpus=0, counted=True):
        found = Accelerators("NVIDIA GPU", gpus, "CUDA_VISIBLE_DEVICES", counted, present=gpus)
        monkeypatch.setattr(settings, "accelerators", lambda env: found)
        return settings.plan(given or {}, file, ["train.py", "x"], environ or {})

    return make


def from_file(options=None, **run):
    return FromFile(options or {}, Layer(CONFIG_FILE, run))


def test_nothing_given_on_a_machine_without_accelerators_is_one_process(plan):
    spec, launcher = plan()
    assert (spec.script, spec.arguments, spec.num_processes, launcher) == ("train.py", ("x",), 1, "exec")
    assert (spec.environment, spec.options) == ({}, {})


def test_by_default_every_accelerator_gets_a_process(plan):
    assert plan(gpus=4).spec.num_processes == 4
    assert plan({"num_machines": 2}, gpus=4).spec.num_processes == 8
    assert plan(gpus=1).launcher == "exec"
    assert plan({"cpu": True}, gpus=4).spec.num_processes == 1
    assert plan(environ={"ACCELERATE_USE_CPU": "yes"}, gpus=4).spec.num_processes == 1
    assert plan({"gpu_ids": "0,2"}, gpus=4).spec.num_processes == 2
    assert plan({"gpu_ids": "all"}, gpus=4).spec.num_processes == 4


@pytest.mark.parametrize(
    ("given", "gpus", "text"),
    [
        ({"num_processes": 5}, 4, "5 processes on this machine need as many accelerators; 4 can be used"),
        ({"multi_gpu": True, "num_processes": 2}, 0, "2 processes on this machine need"),
        ({"multi_gpu": True}, 0, "1 processes"),
        ({"gpu_ids": "1", "num_processes": 2}, 4, "1 can be used"),
        ({"gpu_ids": "0,1", "num_processes": 2}, 0, "0 can be used"),
        ({"num_processes": 10, "num_machines": 2}, 4, "5 processes on this machine"),
    ],
)
def test_more_processes_than_accelerators_is_an_error(plan, given, gpus, text):
    with pytest.raises(LaunchError, match=text):
        plan(given, gpus=gpus)


def test_an_accelerator_that_is_not_there_cannot_be_selected(plan):
    # The driver would show none at all, and the script would run on the CPU.
    with pytest.raises(LaunchError, match="no NVIDIA GPU with number 7"):
        plan({"gpu_ids": "0,7"}, gpus=4)
    assert plan({"gpu_ids": "GPU-1b2c,MIG-3d"}, gpus=4).spec.num_processes == 2


def test_a_precision_of_another_package_may_be_named(plan, monkeypatch):
    offered = [Offer("posit", "other:Posit", "other")]
    monkeypatch.setattr(settings, "offers", lambda group: offered)
    chosen = plan({"mixed_precision": "posit"}).spec
    assert chosen.environment["ACCELERATE_MIXED_PRECISION"] == "posit"


def test_on_the_cpu_any_number_of_processes_is_fine(plan):
    assert plan({"num_processes": 5}).spec.num_processes == 5
    assert plan({"num_processes": 5, "cpu": True}, gpus=4).spec.num_processes == 5


def test_accelerators_that_cannot_be_counted_are_left_to_the_user(plan):
    assert plan({"multi_gpu": True, "num_processes": 4}, counted=False).spec.num_processes == 4
    assert plan(counted=False).spec.num_processes == 1


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(plan):
    file = from_file({"num_processes": 2}, mixed_precision="fp16", gradient_accumulation_steps=8, debug=True)
    environ = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "no"}
    spec, _ = plan({"mixed_precision": "bf16"}, file=file, environ=environ)
    # What the environment said, and nobody outranked, is not set again.
    ours = {key: value for key, value in spec.environment.items() if key.startswith("ACCELERATE")}
    assert ours == {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DEBUG_MODE": "true"}
    assert spec.num_processes == 2
    assert plan({"num_processes": 3}, file=file).spec.num_processes == 3


def test_a_wrong_precision_is_reported_with_the_place_that_said_it(plan):
    with pytest.raises(ConfigError, match="fp8.*not available in this version.*said by environment"):
        plan(environ={"ACCELERATE_MIXED_PRECISION": "fp8"})
    with pytest.raises(ConfigError, match="no installed precision policy.*config file"):
        plan(file=from_file(mixed_precision="fp17"))


def test_a_variable_that_cannot_be_read_is_an_error_before_the_start(plan):
    with pytest.raises(ConfigError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        plan(environ={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "many"})


@pytest.mark.parametrize(
    "given",
    [
        {"max_restarts": 1},
        {"log_dir": "x"},
        {"tee": "3"},
        {"rdzv_backend": "c10d"},
        {"num_processes": 2},
        {"role": "r"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_only_the_elastic_launcher_does_goes_there(plan, given):
    assert plan(given).launcher == "elastic"


@pytest.mark.parametrize(
    "given",
    [
        {"max_restarts": 0},
        {"tee": "0"},
        {"rdzv_backend": "static"},
        {"role": "default"},
        {"quiet": True},
        {"debug": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_asks_for_nothing_more_stays_one_process(plan, given):
    planned = plan(given)
    assert (planned.launcher, planned.spec.options) == ("exec", {})


def test_threads(plan, monkeypatch):
    monkeypatch.setattr(settings, "cpus", lambda: 8)
    threads = "OMP_NUM_THREADS"
    assert threads not in plan().spec.environment
    assert plan({"num_processes": 4}).spec.environment[threads] == "2"
    assert plan({"num_processes": 4, "num_machines": 2}).spec.environment[threads] == "4"
    assert plan({"num_processes": 16}).spec.environment[threads] == "1"
    assert threads not in plan({"num_processes": 4}, environ={threads: "3"}).spec.environment
    assert plan({"num_cpu_threads_per_process": 5}, environ={threads: "3"}).spec.environment[threads] == "5"


def test_every_wrong_setting_is_named_at_once(plan):
    with pytest.raises(ConfigError) as caught:
        plan(
            {
                "num_processes": 0,
                "main_process_port": -1,
                "monitor_interval": 0.0,
                "use_fsdp": True,
                "max_restarts": -1,
            }
        )
    assert {fault.field for fault in caught.value.faults} == {
        "num_processes", "main_process_port", "monitor_interval", "--use_fsdp", "max_restarts",
    }  # fmt: skip


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_under_mpirun_each_rank_starts_one_script(plan, variable):
    assert plan({"num_processes": 4}, environ={variable: "4"}, gpus=1).launcher == "exec"
    assert plan(environ={variable: "1"}, gpus=2).launcher == "elastic"
    with pytest.raises(LaunchError, match="nobody is there to honour max_restarts"):
        plan({"max_restarts": 1}, environ={variable: "4"})
    with pytest.raises(LaunchError, match="mpirun started 4 processes, but 8 are asked for"):
        plan({"num_processes": 8}, environ={variable: "4"})
