import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.environment import FAMILIES, FsdpConfig, RunConfig, parse_bool, unknown_variables, variables
from accel_core.environment.codecs import BOOL, NAMES, OPEN_NAME, TEXT
from accel_core.errors import ConfigError

# The documented flags of launch that travel to the processes, and the variable of each.
FLAGS = {
    "--mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "--cpu": "ACCELERATE_USE_CPU",
    "--debug": "ACCELERATE_DEBUG_MODE",
    "--gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "--enable_cpu_affinity": "ACCELERATE_CPU_AFFINITY",
    "--dynamo_backend": "ACCELERATE_DYNAMO_BACKEND",
    "--dynamo_mode": "ACCELERATE_DYNAMO_MODE",
    "--dynamo_use_fullgraph": "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "--dynamo_use_dynamic": "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "--dynamo_use_regional_compilation": "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "--downcast_bf16": "ACCELERATE_DOWNCAST_BF16",
    "--use_fsdp": "ACCELERATE_USE_FSDP",
    "--use_deepspeed": "ACCELERATE_USE_DEEPSPEED",
    "--use_megatron_lm": "ACCELERATE_USE_MEGATRON_LM",
    "--use_parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
    "--deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "--zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "--offload_optimizer_device": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "--offload_param_device": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "--offload_optimizer_nvme_path": "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH",
    "--offload_param_nvme_path": "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH",
    "--gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "--zero3_init_flag": "ACCELERATE_DEEPSPEED_ZERO3_INIT",
    "--zero3_save_16bit_model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    "--deepspeed_moe_layer_cls_names": "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES",
    "--fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
    **{
        f"--fsdp_{name}": f"FSDP_{name.upper()}"
        for name in (
            *("version", "offload_params", "min_num_params", "sharding_strategy", "reshard_after_forward"),
            *("auto_wrap_policy", "backward_prefetch", "state_dict_type", "forward_prefetch"),
            *("use_orig_params", "cpu_ram_efficient_loading", "sync_module_states"),
            "activation_checkpointing",
        )
    },
    **{
        f"--megatron_lm_{name}": f"MEGATRON_LM_{name.upper()}"
        for name in (
            *("tp_degree", "use_custom_fsdp", "no_load_optim", "eod_mask_loss", "no_save_optim"),
            *("overlap_cpu_optimizer_d2h_h2d", "optimizer_cpu_offload", "use_precision_aware_optimizer"),
            *("decoder_last_pipeline_num_layers", "pp_degree", "num_micro_batches", "sequence_parallelism"),
            *("recompute_activations", "use_distributed_optimizer", "gradient_clipping", "recompute_method"),
            *("recompute_granularity", "recompute_num_layers", "attention_backend", "context_parallel_size"),
            *(
                "expert_model_parallel_size",
                "attention_dropout",
                "hidden_dropout",
                "calculate_per_token_loss",
            ),
            *("attention_softmax_in_fp32", "expert_tensor_parallel_size", "use_rotary_position_embeddings"),
        )
    },
    **{
        f"--parallelism_config_{name}": f"PARALLELISM_CONFIG_{name.upper()}"
        for name in (
            *("dp_replicate_size", "dp_shard_size", "tp_size", "cp_size", "cp_backend", "cp_comm_strategy"),
            *(
                "sp_size",
                "sp_backend",
                "sp_seq_length",
                "sp_seq_length_is_variable",
                "sp_attn_implementation",
            ),
        )
    },
    **{
        f"--fp8_{name}": f"ACCELERATE_FP8_{name.upper()}"
        for name in (
            *("backend", "use_autocast_during_eval", "margin", "interval", "format", "amax_history_len"),
            *("amax_compute_algo", "opt_level", "enable_fsdp_float8_all_gather", "pad_inner_dim"),
        )
    },
}


def strategy_for(codec):
    """Values that a codec must carry to the environment and back."""
    if codec is BOOL:
        return st.booleans()
    if codec is TEXT:
        return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
            str.strip
        )
    if codec is OPEN_NAME:
        return st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True)
    if codec is NAMES:
        return st.lists(st.from_regex(r"[A-Za-z_]\w{0,20}", fullmatch=True), min_size=1).map(tuple)
    if codec.kind == "whole number":
        return st.integers(min_value=1)
    if codec.kind == "number":
        return st.floats(min_value=0, max_value=1)
    return st.sampled_from(codec.kind.split(" | "))


def record_strategy(family):
    return st.fixed_dictionaries(
        {}, optional={item.field: strategy_for(item.codec) for item in family.variables()}
    ).map(lambda values: family(**values))


@given(st.one_of([record_strategy(family) for family in FAMILIES]))
def test_what_is_written_is_read_back(record):
    assert type(record).from_environ(record.to_environ()) == record


@pytest.mark.parametrize(("flag", "name"), FLAGS.items(), ids=str)
def test_each_documented_flag_has_its_variable(flag, name):
    assert {item.name for item in variables() if item.flag == flag} == {name}


def test_one_flag_fills_the_three_precisions_of_fp8():
    found = {item.name for item in variables() if item.flag == "--fp8_override_linear_precision"}
    assert found == {f"ACCELERATE_FP8_OVERRIDE_{part}" for part in ("FPROP", "DGRAD", "WGRAD")}


def test_no_flag_is_in_the_contract_that_is_not_documented():
    assert {item.flag for item in variables()} - FLAGS.keys() == {None, "--fp8_override_linear_precision"}


def test_names_of_variables_are_unique_and_constants_of_their_module():
    names = [item.name for item in variables()]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        module = sys.modules[family.__module__]
        assert all(getattr(module, item.name) == item.name for item in family.variables())


@pytest.mark.parametrize("text", ["1", "true", "True", "YES", "on", "y", "t", " 1 "])
def test_words_for_true(text):
    assert parse_bool(text) is True
    assert RunConfig.from_environ({"ACCELERATE_DEBUG_MODE": text}).debug is True


@pytest.mark.parametrize("text", ["0", "false", "No", "OFF", "n", "f"])
def test_words_for_false(text):
    assert parse_bool(text) is False


def test_an_empty_variable_is_not_set():
    assert (
        RunConfig.from_environ({"ACCELERATE_USE_CPU": "", "ACCELERATE_MIXED_PRECISION": " "}) == RunConfig()
    )


def test_values_are_read_in_any_case():
    config = RunConfig.from_environ(
        {"ACCELERATE_MIXED_PRECISION": "BF16", "ACCELERATE_DYNAMO_BACKEND": "inductor"}
    )
    assert (config.mixed_precision, config.dynamo_backend) == ("bf16", "INDUCTOR")


def test_a_sharding_strategy_may_be_given_by_its_number():
    assert FsdpConfig.from_environ({"FSDP_SHARDING_STRATEGY": "2"}).sharding_strategy == "SHARD_GRAD_OP"


def test_every_fault_of_the_environment_is_reported_at_once():
    environ = {
        "ACCELERATE_USE_CPU": "maybe",
        "ACCELERATE_DYNAMO_MODE": "max-autotun",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0",
        "ACCELERATE_DEBUG_MODE": "1",
    }
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_environ(environ)
    assert {fault.field: fault.value for fault in caught.value.faults} == {
        name: value for name, value in environ.items() if name != "ACCELERATE_DEBUG_MODE"
    }
    text = str(caught.value)
    assert "did you mean 'max-autotune'?" in text
    assert "must be at least 1" in text
    assert "1/true/yes/on or 0/false/no/off" in text


def test_values_made_in_code_are_held_to_the_same_rules():
    with pytest.raises(ConfigError, match="gradient_accumulation_steps=0: must be at least 1"):
        RunConfig(gradient_accumulation_steps=0)
    with pytest.raises(ConfigError, match="cpu='yes': must be True or False"):
        RunConfig(cpu="yes")


def test_unknown_variables_are_reported_with_the_nearest_and_stop_nothing():
    environ = {
        "ACCELERATE_MIXED_PRECISON": "bf16",
        "ACCELERATE_PROVIDER_URL": "x",
        "FSDP_VERSION": "2",
        "HOME": "/",
    }
    misspelt, foreign = unknown_variables(environ)
    assert (misspelt.name, misspelt.nearest) == ("ACCELERATE_MIXED_PRECISON", "ACCELERATE_MIXED_PRECISION")
    assert "Did you mean ACCELERATE_MIXED_PRECISION?" in str(misspelt)
    assert (foreign.name, foreign.nearest) == ("ACCELERATE_PROVIDER_URL", None)
    assert RunConfig.from_environ(environ) == RunConfig()


def test_nothing_known_is_reported_as_unknown():
    assert unknown_variables({item.name: "x" for item in variables()}) == ()


def test_the_contract_loads_nothing_heavy():
    code = (
        "import sys, accel_core.environment, accel_core.topology, accel_core.config\n"
        "from accel_core.environment import RunConfig\n"
        "from accel_core.config import Layers, DataLoaderConfiguration\n"
        "RunConfig.from_environ()\n"
        "print({'yaml', 'torch', 'importlib.metadata', 'hypothesis', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
