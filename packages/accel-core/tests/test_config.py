import dataclasses
import inspect
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.config import (
    AutocastKwargs,
    Config,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    KwargsHandler,
    PreemptionKwargs,
    ProfileKwargs,
    ProjectConfiguration,
    TorchDynamoPlugin,
)
from accel_core.enums import DDPCommunicationHookType, DynamoBackend
from accel_core.errors import ConfigError

# The documented parameters, in order, with their defaults.
DOCUMENTED = {
    AutocastKwargs: {"enabled": True, "cache_enabled": None},
    DistributedDataParallelKwargs: {
        "dim": 0,
        "broadcast_buffers": True,
        "bucket_cap_mb": 25,
        "find_unused_parameters": False,
        "check_reduction": False,
        "gradient_as_bucket_view": False,
        "static_graph": False,
        "comm_hook": DDPCommunicationHookType.NO,
        "comm_wrapper": DDPCommunicationHookType.NO,
        "comm_state_option": {},
    },
    GradScalerKwargs: {
        "init_scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "enabled": True,
    },
    InitProcessGroupKwargs: {"backend": "nccl", "init_method": None, "timeout": None},
    PreemptionKwargs: {
        "deadline": None,
        "margin": 30.0,
        "signals": ("SIGTERM", "SIGUSR1"),
        "job_deadline": True,
        "directory": None,
    },
    ProfileKwargs: {
        "activities": None,
        "schedule_option": None,
        "on_trace_ready": None,
        "record_shapes": False,
        "profile_memory": False,
        "with_stack": False,
        "with_flops": False,
        "with_modules": False,
        "output_trace_dir": None,
    },
    GradientAccumulationPlugin: {
        "num_steps": None,
        "adjust_scheduler": True,
        "sync_with_dataloader": True,
        "sync_each_batch": False,
    },
    TorchDynamoPlugin: {
        "backend": None,
        "mode": None,
        "fullgraph": None,
        "dynamic": None,
        "options": None,
        "disable": False,
        "use_regional_compilation": None,
    },
    DataLoaderConfiguration: {
        "split_batches": False,
        "dispatch_batches": None,
        "even_batches": True,
        "use_seedable_sampler": False,
        "data_seed": None,
        "non_blocking": False,
        "use_stateful_dataloader": False,
    },
    ProjectConfiguration: {
        "project_dir": None,
        "logging_dir": None,
        "automatic_checkpoint_naming": False,
        "total_limit": None,
        "iteration": 0,
        "save_on_each_node": False,
    },
    KwargsHandler: {},
}
# What accel adds to them; always after the documented ones.
OURS = {DataLoaderConfiguration: {"sharding": "auto", "audit": "first_batches", "uneven": None}}
CLASSES = list(DOCUMENTED)


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_and_defaults_are_the_documented_ones(cls):
    made, expected = cls(), DOCUMENTED[cls] | OURS.get(cls, {})
    assert list(inspect.signature(cls).parameters) == list(expected)
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("sharding", "shard", "sharded"),
        ("audit", "first_batch", "first_batches"),
        ("uneven", "pad_mask", "pad_masked"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_the_nearest(name, wrong, near):
    with pytest.raises(ConfigError, match=f"{name}={wrong!r}.*\n.*did you mean {near!r}"):
        DataLoaderConfiguration(**{name: wrong})


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if not cls.changes and DOCUMENTED[cls]])
def test_settings_cannot_change_once_made(cls):
    made = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next(iter(DOCUMENTED[cls])), 1)
    assert not hasattr(made, "__dict__")


WRONG = [
    (AutocastKwargs, {"enabled": 1, "cache_enabled": "no"}),
    (
        DistributedDataParallelKwargs,
        {"dim": "0", "bucket_cap_mb": 0, "static_graph": None, "comm_hook": "fp61"},
    ),
    (DistributedDataParallelKwargs, {"comm_wrapper": "power_sgd", "comm_state_option": []}),
    (DistributedDataParallelKwargs, {"comm_wrapper": "fp16"}),
    (DistributedDataParallelKwargs, {"comm_state_option": {"start_powerSGD_iter": 3}}),
    (
        GradScalerKwargs,
        {"init_scale": -1.0, "growth_factor": 1.0, "backoff_factor": 1.0, "growth_interval": 0},
    ),
    (GradScalerKwargs, {"init_scale": float("inf"), "enabled": "yes", "growth_interval": 2.0}),
    (InitProcessGroupKwargs, {"backend": 3, "init_method": 4, "timeout": 600}),
    (InitProcessGroupKwargs, {"timeout": timedelta(0)}),
    (
        PreemptionKwargs,
        {"deadline": 0, "margin": -1.0, "signals": "SIGTERM", "directory": 3},
    ),
    (PreemptionKwargs, {"deadline": timedelta(0), "margin": float("nan")}),
    (PreemptionKwargs, {"deadline": "3h", "margin": None, "job_deadline": 1}),
    (ProfileKwargs, {"activities": "cpu", "on_trace_ready": "x", "with_flops": 2, "output_trace_dir": 1}),
    (GradientAccumulationPlugin, {"num_steps": 0, "sync_each_batch": "yes"}),
    (GradientAccumulationPlugin, {"num_steps": True}),
    (GradientAccumulationPlugin, {"num_steps": 2.0}),
    (
        TorchDynamoPlugin,
        {"backend": "inductr", "mode": "fast", "fullgraph": 1, "options": [], "disable": None},
    ),
    (DataLoaderConfiguration, {"split_batches": None, "dispatch_batches": "auto", "data_seed": "7"}),
    (ProjectConfiguration, {"project_dir": 5, "total_limit": 0, "iteration": -1, "save_on_each_node": None}),
]


@pytest.mark.parametrize(("cls", "wrong"), WRONG)
def test_every_wrong_value_is_named_at_once(cls, wrong):
    with pytest.raises(ConfigError) as caught:
        cls(**wrong)
    assert caught.value.owner == cls.__name__
    assert {fault.field: fault.value for fault in caught.value.faults} == wrong


def test_the_nearest_choice_is_named():
    with pytest.raises(ConfigError, match="did you mean 'INDUCTOR'"):
        TorchDynamoPlugin(backend="INDUCTR")
    with pytest.raises(ConfigError, match=r"schedule_option\['warmpu'\]=1: is an unknown key"):
        ProfileKwargs(schedule_option={"wait": 1, "warmpu": 1})
    with pytest.raises(ConfigError, match=r"pass datetime\.timedelta\(seconds=\.\.\.\)"):
        InitProcessGroupKwargs(timeout=600)


def test_names_of_enumerations_are_taken_in_any_case():
    assert TorchDynamoPlugin(backend="Inductor").backend is DynamoBackend.INDUCTOR
    assert DistributedDataParallelKwargs(comm_hook="fp16").comm_hook is DDPCommunicationHookType.FP16


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dim": st.integers(),
            "broadcast_buffers": st.booleans(),
            "bucket_cap_mb": st.integers(1, 1000),
            "find_unused_parameters": st.booleans(),
            "gradient_as_bucket_view": st.booleans(),
            "static_graph": st.booleans(),
        },
    )
)
def test_to_kwargs_is_what_differs_from_the_defaults(given_values):
    default = DistributedDataParallelKwargs()
    made = DistributedDataParallelKwargs(**given_values)
    kwargs = made.to_kwargs()
    assert kwargs == {name: value for name, value in given_values.items() if value != getattr(default, name)}
    assert DistributedDataParallelKwargs(**kwargs) == made


def test_to_dict_leaves_the_hooks_of_ddp_out_unless_asked():
    made = DistributedDataParallelKwargs(comm_hook="fp16", static_graph=True)
    assert made.to_kwargs() == {"static_graph": True}
    assert not {"comm_hook", "comm_wrapper", "comm_state_option"} & made.to_dict().keys()
    assert made.to_dict(ignore_keys=())["comm_hook"] == "fp16"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"comm_wrapper": "bf16"}, "comm_wrapper='bf16': has no comm_hook to wrap.*use comm_hook='bf16'"),
        ({"comm_hook": "fp16", "comm_wrapper": "bf16"}, "contradicts comm_hook='fp16'"),
        (
            {"comm_hook": "bf16", "comm_state_option": {"warm_start": False}},
            "is for comm_hook='power_sgd' and 'batched_power_sgd'; comm_hook='bf16' has none",
        ),
        (
            {"comm_hook": "power_sgd", "comm_state_option": {"matrix_aproximation_rank": 2}},
            r"comm_state_option\['matrix_aproximation_rank'\].*unknown key.*'matrix_approximation_rank'",
        ),
        (
            {"comm_hook": "power_sgd", "comm_state_option": {"process_group": None}},
            r"comm_state_option\['process_group'\].*unknown key",
        ),
    ],
)
def test_what_a_hook_its_wrapper_and_its_options_cannot_do_together_is_told(given, told):
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        DistributedDataParallelKwargs(**given)


@pytest.mark.parametrize("hook", ["power_sgd", "batched_power_sgd", "fp16"])
def test_a_wrapper_of_the_hooks_own_type_and_those_of_power_sgd_are_taken(hook):
    assert DistributedDataParallelKwargs(comm_hook=hook, comm_wrapper="fp16").comm_wrapper == "fp16"


def test_to_dict_is_a_copy():
    state = {"matrix_approximation_rank": 2}
    made = DistributedDataParallelKwargs(comm_hook="power_sgd", comm_state_option=state)
    made.to_dict(ignore_keys=())["comm_state_option"]["matrix_approximation_rank"] = 9
    assert made.comm_state_option == {"matrix_approximation_rank": 2}


def test_the_dynamo_backend_is_spelled_as_torch_does():
    made = TorchDynamoPlugin(backend="INDUCTOR", fullgraph=True)
    assert made.to_kwargs() == {"backend": "inductor", "fullgraph": True}
    assert TorchDynamoPlugin().to_kwargs() == {}


def test_the_default_backend_of_a_process_group_leaves_the_choice_to_the_device():
    assert InitProcessGroupKwargs().wanted_backend is None
    assert InitProcessGroupKwargs(backend="gloo").wanted_backend == "gloo"
    assert InitProcessGroupKwargs(backend=None).wanted_backend is None


def test_the_projects_folders_follow_until_logs_have_their_own():
    project = ProjectConfiguration(project_dir="a")
    assert project.logging_dir == "a"
    project.set_directories("b")
    assert (project.project_dir, project.logging_dir) == ("b", "a")
    project.iteration += 1
    assert project.iteration == 1
    assert ProjectConfiguration(project_dir="a", logging_dir="logs").logging_dir == "logs"


def test_the_base_refuses_other_shapes():
    class Plain(Config):
        pass

    @dataclass
    class Soft(Config):
        size: int = 1

    @dataclass(frozen=True)
    class Good(Config):
        size: int = 1

    for cls in (Plain, Soft):
        with pytest.raises(TypeError, match=f"{cls.__name__} must be a frozen dataclass"):
            cls()
    assert Good().size == 1
