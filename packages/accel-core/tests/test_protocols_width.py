"""Interfaces stay narrow: their width sets the size of every implementation."""

import inspect

import pytest

import accel_core.protocols

PROTOCOLS = [
    value
    for value in (getattr(accel_core.protocols, name) for name in accel_core.protocols.__all__)
    if getattr(value, "_is_protocol", False) and inspect.isclass(value)
]


def test_every_role_is_a_protocol():
    names = {protocol.__name__ for protocol in PROTOCOLS}
    assert {
        "Device",
        "Collectives",
        "Strategy",
        "Precision",
        "Tracker",
        "CheckpointIO",
        "Launcher",
        "Command",
    } <= names


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_at_most_eight_methods(protocol):
    methods = [
        name
        for name, value in vars(protocol).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]
    assert methods
    assert len(methods) <= 8, f"{protocol.__name__} has {len(methods)} methods: {', '.join(methods)}"
    undocumented = [name for name in methods if not inspect.getdoc(getattr(protocol, name))]
    assert not undocumented
