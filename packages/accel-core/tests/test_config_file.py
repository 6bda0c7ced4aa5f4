import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accel_core.config import config_path, default_config, read_config, write_config
from accel_core.config.schema import SECTIONS, TOP
from accel_core.environment import FsdpConfig
from accel_core.errors import AccelError, ConfigError

# A documented example, word for word in its keys.
FSDP = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_backward_prefetch_policy: BACKWARD_PRE
  fsdp_forward_prefetch: false
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_sync_module_states: true
  fsdp_transformer_layer_cls_to_wrap: BertLayer
  fsdp_use_orig_params: true
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""
DEEPSPEED = """\
command_file: null
commands: null
compute_environment: LOCAL_MACHINE
deepspeed_config:
  gradient_accumulation_steps: 4
  gradient_clipping: 1.0
  offload_optimizer_device: 'cpu'
  offload_param_device: none
  zero3_init_flag: true
  zero3_save_16bit_model: true
  zero_stage: 3
  deepspeed_config_file: 'ds_config.json'
distributed_type: DEEPSPEED
dynamo_backend: 'NO'
fsdp_config: {}
gpu_ids: null
main_process_ip: null
main_process_port: null
megatron_lm_config: {}
num_processes: 2
tpu_name: null
use_cpu: false
"""
MEGATRON = """\
megatron_lm_config:
  megatron_lm_gradient_clipping: 1.0
  megatron_lm_tp_degree: 2
"""
FP8 = """\
mixed_precision: fp8
fp8_config:
  amax_compute_algorithm: max
  amax_history_length: 1024
  backend: TE
  fp8_format: HYBRID
  interval: 1
  margin: 0
  override_linear_precision: false
  use_autocast_during_eval: false
"""
MSAMP = """\
fp8_config:
    backend: MSAMP
    opt_level: O2
"""
MPI = """\
ipex_config:
  ipex: true
mpirun_config:
  mpirun_ccl: '1'
  mpirun_hostfile: /home/user/hostfile
"""
SAGEMAKER = """\
base_job_name: accelerate-sagemaker-1
compute_environment: AMAZON_SAGEMAKER
distributed_type: DATA_PARALLEL
ec2_instance_type: ml.p3.16xlarge
iam_role_name: xxxxx
image_uri: null
mixed_precision: fp16
num_machines: 1
profile: xxxxx
py_version: py38
pytorch_version: 1.10.2
region: us-east-1
transformers_version: 4.17.0
use_cpu: false
"""


def write(folder, text, name="config.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_documented_file_for_fsdp(tmp_path):
    found = read_config(write(tmp_path, FSDP))
    assert found.values["num_processes"] == 2
    fsdp = FsdpConfig(**found.section("fsdp_config"))
    assert fsdp.transformer_cls_to_wrap == ("BertLayer",)
    assert fsdp.backward_prefetch == "BACKWARD_PRE"
    assert fsdp.offload_params is False
    layer = found.run_layer()
    assert layer.values == {
        "debug": False,
        "downcast_bf16": False,
        "mixed_precision": "bf16",
        "cpu": False,
        "use_fsdp": True,
    }
    assert layer.labels["mixed_precision"] == f"{tmp_path / 'config.yaml'}:18"
    assert layer.labels["use_fsdp"].endswith(":3")


def test_a_documented_file_for_deepspeed(tmp_path):
    found = read_config(write(tmp_path, DEEPSPEED))
    layer = found.run_layer()
    assert layer.values["gradient_accumulation_steps"] == 4
    assert layer.values["use_deepspeed"] is True
    assert layer.values["dynamo_backend"] == "NO"
    section = found.section("deepspeed_config")
    assert (section["config_file"], section["zero_stage"], section["gradient_clipping"]) == (
        "ds_config.json",
        3,
        1.0,
    )
    assert "main_process_ip" not in found.values


@pytest.mark.parametrize(
    "text", [MEGATRON, FP8, MSAMP, MPI, SAGEMAKER], ids=["megatron", "fp8", "msamp", "mpi", "sagemaker"]
)
def test_other_documented_files_are_read(tmp_path, text):
    assert read_config(write(tmp_path, text)).values


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n"])
def test_an_empty_file_says_nothing(tmp_path, text):
    path = write(tmp_path, text)
    if text == "":
        path.write_text(text)
    found = read_config(path)
    assert (found.values, found.run_layer().values) == ({}, {})


def test_the_word_no_without_quotes(tmp_path):
    found = read_config(write(tmp_path, "mixed_precision: no\ndistributed_type: NO\ndynamo_backend: no\n"))
    assert dict(found.values) == {"mixed_precision": "no", "distributed_type": "NO", "dynamo_backend": "NO"}


def test_json_is_read_too(tmp_path):
    path = write(tmp_path, json.dumps({"num_processes": 2, "use_cpu": True}, indent=2), "config.json")
    assert dict(read_config(path).values) == {"num_processes": 2, "use_cpu": True}


def test_every_fault_comes_with_its_line(tmp_path):
    text = """\
mixed_precison: bf16
num_processes: two
use_cpu: 3
fsdp_config:
  fsdp_version: 3
  fsdp_offload: true
"""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert [fault.field for fault in caught.value.faults] == [
        "mixed_precison (line 1)",
        "num_processes (line 2)",
        "use_cpu (line 3)",
        "fsdp_config.fsdp_version (line 5)",
        "fsdp_config.fsdp_offload (line 6)",
    ]
    assert str(path) in str(caught.value)
    assert "did you mean 'mixed_precision'?" in str(caught.value)
    assert "did you mean 'fsdp_offload_params'?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: [1,\nb: 2\n", "line 3, column 1"),
        ("use_cpu: true\n\tdebug: true\n", "line 2"),
        ("use_cpu: 'true\n", "is no YAML"),
        ("use_cpu: !!python/object:os.system x\n", "is no YAML"),
        ("- a\n- b\n", "must be keys with values"),
        ("just words\n", "must be keys with values"),
        ("a: 1\n---\nb: 2\n", "is no YAML"),
        ("use_cpu: true\ndebug: true\nuse_cpu: false\n", "is given twice, in lines 1 and 3"),
        ("fsdp_config: [1]\n", "must be a table of keys"),
        ("num_processes: {a: 1}\n", "must be whole number"),
    ],
)
def test_malformed_files_name_file_and_place(tmp_path, text, named):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_not_silently_the_default(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*cannot be read: No such file"):
        read_config(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "config.yaml")


@given(st.text(max_size=40))
def test_no_text_leads_to_anything_but_a_file_or_an_error_of_ours(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_config(path)
    except AccelError:
        pass


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


@given(
    st.dictionaries(
        st.sampled_from([*TOP, *SECTIONS, "else"]), st.one_of(values, st.dictionaries(st.text(), values))
    )
)
def test_no_values_lead_to_anything_but_a_file_or_an_error_of_ours(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz2.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        read_config(path)
    except AccelError:
        pass


def test_where_the_default_file_is():
    home = Path("~").expanduser()
    assert config_path({"HF_HOME": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a/accelerate/default_config.yaml")
    assert config_path({"XDG_CACHE_HOME": "/b"}) == Path("/b/huggingface/accelerate/default_config.yaml")
    assert config_path({}) == home / ".cache/huggingface/accelerate/default_config.yaml"
    assert config_path({"HF_HOME": " ", "XDG_CACHE_HOME": ""}) == config_path({})
    assert config_path({"HF_HOME": "~/a"}) == home / "a/accelerate/default_config.yaml"


def test_the_default_file_is_read_when_there_is_one(tmp_path):
    environ = {"HF_HOME": str(tmp_path)}
    assert default_config(environ) is None
    write_config(config_path(environ), {"use_cpu": True})
    assert default_config(environ).values == {"use_cpu": True}


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_what_is_written_is_read_back(tmp_path, name):
    data = yaml.safe_load(FSDP)
    path = write_config(tmp_path / "new" / name, data)
    first = read_config(path)
    write_config(path, first.values)
    assert read_config(path).values == first.values
    assert list(path.parent.iterdir()) == [path]
    if name.endswith(".json"):
        assert json.loads(path.read_text())["num_processes"] == 2


def test_a_wrong_value_is_not_written_and_the_old_file_stays(tmp_path):
    path = write_config(tmp_path / "a.yaml", {"num_processes": 2})
    with pytest.raises(ConfigError, match="num_proceses=3: is an unknown key"):
        write_config(path, {"num_proceses": 3})
    assert read_config(path).values == {"num_processes": 2}


def test_yaml_is_imported_only_when_a_file_is_read(tmp_path):
    path = write(tmp_path, FSDP)
    code = (
        "import sys\nfrom accel_core.config import read_config, default_config\n"
        "default_config({'HF_HOME': '/nowhere'})\nbefore = 'yaml' in sys.modules\n"
        f"read_config({str(path)!r})\nprint(before, 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("num_processes: [1]", "num_processes"),
        ("mixed_precision: [bf16]", "mixed_precision"),
        ("use_cpu: {a: 1}", "use_cpu"),
        ("? {a: 1}\n: 3", "line 1"),
        ("a: !!python/name:os.system", "constructor"),
        ("a: 1\n---\nb: 2", "document"),
        ("a: \x00", "special characters"),
    ],
    ids=["deep", "list", "list of names", "table", "key", "tag", "two documents", "nul"],
)
def test_what_no_one_would_write_is_a_fault_too(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        read_config(write(tmp_path, text))


def test_a_file_of_something_else_is_answered_in_a_few_lines(tmp_path):
    text = "\n".join(f"k{number}: {'x' * 1000}" for number in range(500))
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert len(lines) < 30
    assert lines[-1].strip(" -.") == "and 480 more"
    assert "x" * 300 not in str(caught.value)
    assert len(caught.value.faults) == 500
