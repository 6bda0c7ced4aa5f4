import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.config import CODE, COMMAND_LINE, CONFIG_FILE, DEFAULT, ENVIRONMENT, ORDER, Layer, Layers
from accel_core.environment import RunConfig
from accel_core.errors import ConfigError, UnknownNameError

DEFAULTS = {"mixed_precision": "no", "cpu": False, "num_processes": None, "aws_secret_access_key": None}


def layers(code=None, line=None, environment=None, file=None):
    return Layers(
        Layer(CODE, code or {}),
        Layer(COMMAND_LINE, line or {}, {"mixed_precision": "--mixed_precision"}),
        Layer(ENVIRONMENT, environment or {}, {"mixed_precision": "ACCELERATE_MIXED_PRECISION"}),
        Layer(CONFIG_FILE, file or {}, {"mixed_precision": "default.yaml:3"}),
        Layer(DEFAULT, DEFAULTS),
    )


def test_the_strongest_layer_that_says_something_wins():
    found = layers(line={"mixed_precision": "bf16"}, environment={"mixed_precision": "fp16"}).resolve()
    assert found.value("mixed_precision") == "bf16"
    assert found.origin("mixed_precision") == "command line (--mixed_precision)"
    assert [(lost.value, lost.origin) for lost in found.losers("mixed_precision")] == [
        ("fp16", "environment (ACCELERATE_MIXED_PRECISION)"),
        ("no", "default"),
    ]


def test_what_nobody_says_is_the_default():
    found = layers().resolve()
    assert found.values() == DEFAULTS
    assert found.origin("cpu") == "default"
    assert found.losers("cpu") == ()


def test_none_says_nothing_but_false_does():
    found = layers(code={"cpu": None}, environment={"cpu": False}, file={"cpu": True}).resolve()
    assert found.value("cpu") is False
    assert found.origin("cpu") == "environment"


@given(st.lists(st.one_of(st.none(), st.sampled_from(["fp16", "bf16", "fp8"])), min_size=4, max_size=4))
def test_for_any_layers_the_first_that_speaks_wins_and_the_rest_are_losers(said):
    found = layers(*({"mixed_precision": value} for value in said)).resolve()
    spoken = [value for value in [*said, "no"] if value is not None]
    assert [
        found.value("mixed_precision"),
        *(lost.value for lost in found.losers("mixed_precision")),
    ] == spoken
    first = next((name for name, value in zip(ORDER, said, strict=False) if value is not None), DEFAULT)
    assert found.origin("mixed_precision").startswith(first)


def test_every_unknown_key_is_named_with_its_layer_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        layers(code={"mixed_precison": "bf16"}, file={"colour": 1}).resolve()
    first, second = caught.value.faults
    assert (first.field, first.reason) == ("mixed_precison", "is no setting, said by code")
    assert first.fix == "did you mean 'mixed_precision'?"
    assert (second.field, second.reason) == ("colour", "is no setting, said by config file")
    assert "known: aws_secret_access_key, cpu" in second.fix


def test_asking_for_no_field_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'cpu'?"):
        layers().resolve().value("cpus")


def test_the_explanation_is_an_aligned_table_that_hides_secrets():
    found = layers(
        code={"cpu": True, "aws_secret_access_key": "AKIA"}, environment={"mixed_precision": "bf16"}
    ).resolve()
    lines = found.explain().splitlines()
    assert lines[0].split() == ["setting", "value", "from", "overrides"]
    row = next(line for line in lines if line.startswith("mixed_precision"))
    assert row.split("  ")[-1] == "'no' from default"
    assert "'bf16'" in row
    assert "environment (ACCELERATE_MIXED_PRECISION)" in row
    column = lines[0].index("from")
    assert all(line[column - 2 : column] == "  " for line in lines)
    assert "AKIA" not in found.explain()
    assert "(hidden)" in found.explain()


def test_what_is_resolved_cannot_change():
    found = layers().resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.said = {}
    with pytest.raises(TypeError):
        found.said["cpu"] = ()


def test_the_environment_is_a_layer_as_it_is():
    config = RunConfig.from_environ({"ACCELERATE_USE_CPU": "1"})
    labels = {item.field: item.name for item in RunConfig.variables()}
    defaults = dict.fromkeys((item.field for item in RunConfig.variables()), None)
    found = Layers(Layer(ENVIRONMENT, config.values(), labels), Layer(DEFAULT, defaults)).resolve()
    assert found.origin("cpu") == "environment (ACCELERATE_USE_CPU)"


def test_layers_need_defaults():
    with pytest.raises(TypeError, match="at least the layer of defaults"):
        Layers()
