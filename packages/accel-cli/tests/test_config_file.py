"""The config file: the documented keys, the documented place, and no key ignored."""

import pytest

from accel_cli import config_file
from accel_core.errors import ConfigError

# The documented example, with the number of processes that a machine without GPUs can have.
DOCUMENTED = """\
compute_environment: LOCAL_MACHINE
deepspeed_config: {}
distributed_type: MULTI_CPU
fsdp_config: {}
machine_rank: 0
main_process_ip: null
main_process_port: null
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 1
use_cpu: true
"""


def test_a_named_file_is_used_and_the_command_line_outranks_it(folder):
    folder.write("conf.yaml", DOCUMENTED)
    done = folder.launch("--config_file", "conf.yaml", "show.py")
    assert (done.returncode, done.stderr) == (0, "")
    environ = folder.shown()["environ"]
    assert (environ["ACCELERATE_MIXED_PRECISION"], environ["ACCELERATE_USE_CPU"]) == ("bf16", "true")
    assert folder.launch("--config-file=conf.yaml", "--mixed_precision", "no", "show.py").returncode == 0
    assert folder.shown()["environ"]["ACCELERATE_MIXED_PRECISION"] == "no"


def test_json_is_read_too(folder):
    folder.write("conf.json", '{"mixed_precision": "fp16", "use_cpu": true}')
    assert folder.launch("--config_file", "conf.json", "show.py").returncode == 0
    assert folder.shown()["environ"]["ACCELERATE_MIXED_PRECISION"] == "fp16"


def test_the_default_file_is_used_and_said(folder):
    path = folder.write("home/accelerate/default_config.yaml", DOCUMENTED)
    done = folder.launch("show.py")
    assert done.returncode == 0
    assert done.stderr == f"accel launch: settings that are not given come from {path}\n"
    assert folder.shown()["environ"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert folder.launch("--quiet", "show.py").stderr == ""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mixed_precison: fp16", ["mixed_precison", "mixed_precision"]),
        ("num_processes: many", ["num_processes", "many"]),
        ("mixed_precision: [", ["conf.yaml"]),
        ("- a list", ["conf.yaml"]),
        (
            "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2",
            ["distributed_type", "fsdp_config", "not available"],
        ),
        ("distributed_type: DEEPSPEED", ["distributed_type", "DEEPSPEED", "not available"]),
        ("compute_environment: AMAZON_SAGEMAKER", ["AMAZON_SAGEMAKER", "not available"]),
        ("tpu_use_cluster: true", ["tpu_use_cluster", "not available"]),
        ("dynamo_config:\n  dynamo_backend: FAST", ["dynamo_config.dynamo_backend (line 2)", "INDUCTOR"]),
        ("mixed_precision: fp8", ["fp8", "not available"]),
        ("mixed_precision: fp17", ["fp17", "no installed precision policy"]),
    ],
    ids=[
        "key",
        "value",
        "yaml",
        "list",
        "fsdp",
        "deepspeed",
        "sagemaker",
        "tpu",
        "dynamo",
        "fp8",
        "fp17",
    ],
)
def test_nothing_in_the_file_is_ignored(folder, text, parts):
    folder.write("conf.yaml", text)
    done = folder.launch("--config_file", "conf.yaml", "show.py")
    assert done.returncode == 2, done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder.path / "shown.0.json").exists()


def test_the_compiler_of_the_file_is_passed_on(folder):
    folder.write(
        "conf.yaml",
        "dynamo_config:\n  dynamo_backend: INDUCTOR\n  dynamo_mode: reduce-overhead\n"
        "  dynamo_use_dynamic: true\n  dynamo_use_fullgraph: false\n"
        "  dynamo_use_regional_compilation: true\n",
    )
    words = ("--config_file", "conf.yaml", "--dynamo_mode=max-autotune", "show.py")
    assert folder.launch(*words, env={"ACCELERATE_DYNAMO_BACKEND": "eager"}).returncode == 0
    environ = folder.shown()["environ"]
    assert {name: text for name, text in environ.items() if name.startswith("ACCELERATE_DYNAMO")} == {
        "ACCELERATE_DYNAMO_BACKEND": "eager",
        "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "false",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true",
    }


def test_a_file_that_does_not_exist(folder):
    done = folder.launch("--config_file", "nope.yaml", "show.py")
    assert done.returncode == 2
    assert "nope.yaml" in done.stderr


def test_keys_that_ask_for_nothing_are_let_through(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text(
        "downcast_bf16: 'no'\nenable_cpu_affinity: false\n"
        "dynamo_backend: 'NO'\nsame_network: true\ntpu_env: []\ntpu_use_cluster: false\n"
        "tpu_use_sudo: false\ncommands: null\nnum_processes: -1\nrdzv_backend: static\ngpu_ids: all\n"
        "dynamo_config:\n  dynamo_backend: 'NO'\n"
    )
    said = config_file.settings(str(path))
    assert said.options == {"same_network": True, "rdzv_backend": "static", "gpu_ids": "all"}


def test_accumulation_in_the_section_where_it_is_documented(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text("deepspeed_config:\n  gradient_accumulation_steps: 4\n")
    assert config_file.settings(str(path)).run.values["gradient_accumulation_steps"] == 4
    path.write_text("deepspeed_config:\n  gradient_accumulation_steps: 4\n  zero_stage: 2\n")
    with pytest.raises(ConfigError, match="deepspeed_config"):
        config_file.settings(str(path))
