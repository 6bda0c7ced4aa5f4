import json
import pickle

import pytest

from accel_core import enums
from accel_core.enums import DDPCommunicationHookType, DistributedType, DynamoBackend, PrecisionType, StrEnum

ALL = [
    value
    for value in vars(enums).values()
    if isinstance(value, type) and issubclass(value, StrEnum) and value is not StrEnum
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_members_are_their_values(kind):
    for member in kind:
        assert member == member.value
        assert str(member) == f"{member}" == f"{member}" == member.value
        assert json.loads(json.dumps(member)) == member.value
        assert pickle.loads(pickle.dumps(member)) is member
        assert kind(member.value.upper()) is kind(member.value.lower()) is member
        assert member.value in kind
        assert member in kind
    assert kind.list() == [member.value for member in kind]
    assert "nothing" not in kind
    assert 3 not in kind


def test_documented_members():
    assert PrecisionType.list() == ["no", "fp8", "fp16", "bf16"]
    assert DistributedType.list()[:3] == ["NO", "MULTI_CPU", "MULTI_GPU"]
    assert len(DistributedType) == 14
    assert len(DynamoBackend) == 16
    assert DDPCommunicationHookType.list() == ["no", "fp16", "bf16", "power_sgd", "batched_power_sgd"]


def test_what_is_no_member():
    with pytest.raises(ValueError, match="'fp12' is not a valid PrecisionType"):
        PrecisionType("fp12")
    with pytest.raises(ValueError, match="not a valid"):
        PrecisionType(None)
