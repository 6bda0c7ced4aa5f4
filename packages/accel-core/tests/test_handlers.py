"""Settings of the profiler and the compiler, and handlers that users derive; no torch is needed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from accel_core.config import (
    AutocastKwargs,
    GradScalerKwargs,
    KwargsHandler,
    PreemptionKwargs,
    ProfileKwargs,
    TorchDynamoPlugin,
)
from accel_core.enums import DynamoBackend
from accel_core.errors import ConfigError

WRONG = {
    "an unknown activity": (ProfileKwargs, {"activities": ["cpu", "xpuu"]}, r"activities\[1\]=.xpuu."),
    "gpu": (ProfileKwargs, {"activities": ["gpu"]}, "did you mean 'cuda'"),
    "one name": (ProfileKwargs, {"activities": "cpu"}, "must be a list of names"),
    "no activity": (ProfileKwargs, {"activities": []}, "must be a list of names"),
    "no name": (ProfileKwargs, {"activities": [0]}, r"activities\[0\]=0: must be one of cpu, cuda"),
    "half a schedule": (ProfileKwargs, {"schedule_option": {"active": 1}}, "lacks wait, warmup"),
    "nothing active": (
        ProfileKwargs,
        {"schedule_option": {"wait": 0, "warmup": 0, "active": 0}},
        r"schedule_option\['active'\]=0: must be a whole number of at least 1",
    ),
    "before the start": (
        ProfileKwargs,
        {"schedule_option": {"wait": -1, "warmup": 0, "active": 1}},
        r"schedule_option\['wait'\]=-1: must be a whole number of at least 0",
    ),
    "a number for a folder": (ProfileKwargs, {"output_trace_dir": 3}, "must be a path or None"),
    "no callback": (ProfileKwargs, {"on_trace_ready": "print"}, "on_trace_ready.*must be callable"),
    "a misspelt signal": (PreemptionKwargs, {"signals": ("SIGUSR",)}, r"(?s)\[0\]='SIGUSR'.*mean 'SIGUSR"),
    "a signal by number": (PreemptionKwargs, {"signals": (15,)}, r"\[0\]=15: is the name of no signal"),
    "a signal nobody sees": (PreemptionKwargs, {"signals": ("SIGKILL",)}, "before it can do anything"),
    "a deadline in words": (PreemptionKwargs, {"deadline": "3h"}, "seconds or a timedelta, more than 0 or a"),
    "an unknown backend": (TorchDynamoPlugin, {"backend": "indctor"}, "mean 'INDUCTOR'"),
    "an unknown mode": (TorchDynamoPlugin, {"mode": "max-autotne"}, "did you mean 'max-autotune'"),
    "mode and options": (
        TorchDynamoPlugin,
        {"mode": "max-autotune", "options": {"max_autotune": True}},
        "options.*cannot be given beside mode='max-autotune'",
    ),
    "a mode for a backend without": (
        TorchDynamoPlugin,
        {"backend": "eager", "mode": "max-autotune"},
        "mode='max-autotune': would be ignored by the backend EAGER",
    ),
    "options for a backend without": (
        TorchDynamoPlugin,
        {"backend": "aot_eager", "options": {"a": 1}},
        "would be ignored by the backend AOT_EAGER",
    ),
    "a word for a switch": (TorchDynamoPlugin, {"dynamic": "yes"}, "dynamic='yes': must be True or False"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named(case):
    cls, values, text = WRONG[case]
    with pytest.raises(ConfigError, match=text):
        cls(**values)


def test_the_compiler_gets_its_own_arguments_only():
    plugin = TorchDynamoPlugin("Inductor", "max-autotune", True, False, None, False, True)
    assert plugin.to_kwargs() == {
        "backend": "inductor",
        "mode": "max-autotune",
        "fullgraph": True,
        "dynamic": False,
    }
    assert plugin.to_dict() == {
        **plugin.to_kwargs(),
        "options": None,
        "disable": False,
        "use_regional_compilation": True,
    }
    assert TorchDynamoPlugin(mode="default", backend=DynamoBackend.EAGER).to_kwargs()["backend"] == "eager"


def test_a_function_may_be_the_backend():
    class Backend:
        """A function with a memory: a copy of it would not be it."""

        def __call__(self, graph, inputs):
            return graph

    backend = Backend()
    assert TorchDynamoPlugin(backend=backend).to_kwargs() == {"backend": backend}


def test_names_that_installed_packages_offer_to_torch_are_known(tmp_path, monkeypatch):
    info = tmp_path / "fast-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fast\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[torch_dynamo_backends]\nfast = fast:compile\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert TorchDynamoPlugin(backend="fast").to_kwargs() == {"backend": "fast"}
    with pytest.raises(ConfigError, match="did you mean 'fast'"):
        TorchDynamoPlugin(backend="fasst")


@dataclass(frozen=True)
class Own(KwargsHandler):
    alpha: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gentle(GradScalerKwargs):
    """Other defaults: they must reach the scaler, whose own are those of the documented class."""

    init_scale: float = 1024.0
    growth_interval: int = 100


def test_a_handler_of_ones_own_tells_what_differs():
    assert Own().to_kwargs() == {}
    assert Own(alpha=0.1).to_kwargs() == {"alpha": 0.1}
    assert Own(names=("a",)).to_dict() == {"alpha": 0.5, "names": ("a",)}


def test_other_defaults_of_a_subclass_are_not_lost():
    assert Gentle().to_kwargs() == {"init_scale": 1024.0, "growth_interval": 100}
    assert Gentle(init_scale=65536.0).to_kwargs() == {"growth_interval": 100}
    assert AutocastKwargs().to_kwargs() == GradScalerKwargs().to_kwargs() == {}
    with pytest.raises(ConfigError, match="Gentle: init_scale=-1.0"):
        Gentle(init_scale=-1.0)
