"""The conformance suites: plain implementations pass, planted faults are found.

Both run pytest in a process of its own, so that a fault's failing test is a result and not a failure.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from accel_core.testing.conformance.base import Conformance

pytest.importorskip("torch", exc_type=ImportError)
pytest.importorskip("cloudpickle")

HERE = Path(__file__).parent
LIGHT = {"Tracker", "Command", "Launcher"}
"""Roles whose classes must import without torch."""

# ruff: noqa: E501, ISC004 - faults are programs in a line or two

# Each fault changes one plain implementation; the named tests must fail, and no others of that suite.
FAULTS = {
    "collectives in the wrong order": (
        "Collectives",
        "class Faulty(GlooCollectives):\n    def all_gather(self, tensor): return super().all_gather(tensor).flip(0)",
        {"test_all_gather", "test_non_contiguous_and_differentiable_inputs"},
    ),
    "objects in the wrong order": (
        "Collectives",
        "class Faulty(GlooCollectives):\n    def all_gather_object(self, value): return super().all_gather_object(value)[::-1]",
        {"test_objects"},
    ),
    "a sum where a mean was asked": (
        "Collectives",
        "class Faulty(GlooCollectives):\n"
        "    def all_reduce(self, tensor, op='sum'): return super().all_reduce(tensor, 'sum' if op == 'mean' else op)",
        {"test_all_reduce"},
    ),
    "a reduction in place": (
        "Collectives",
        "class Faulty(GlooCollectives):\n"
        "    def all_reduce(self, tensor, op='sum'):\n"
        "        tensor.data.copy_(super().all_reduce(tensor, op)); return tensor",
        {"test_all_reduce", "test_non_contiguous_and_differentiable_inputs"},
    ),
    "a barrier that does not wait": (
        "Collectives",
        "class Faulty(GlooCollectives):\n    def barrier(self): pass",
        {"test_barrier"},
    ),
    "broadcast always from rank 0": (
        "Collectives",
        "class Faulty(GlooCollectives):\n    def broadcast(self, tensor, src=0): return super().broadcast(tensor, 0)",
        {"test_broadcast"},
    ),
    "gradients summed and not averaged": (
        "Strategy",
        "class Faulty(Plain):\n    def average(self, tensor): return self.batches.all_reduce(tensor, 'sum')",
        {
            "test_loss_and_gradients_equal_plain_torch",
            "test_ranks_start_from_the_same_weights",
            "test_no_sync_then_sync_equals_one_big_batch",
            "test_clip_norm",
            "test_clip_value",
            "test_scale",
            "test_inputs_without_buffers_do_nothing",
        },
    ),
    "weights not made equal": (
        "Strategy",
        "class Faulty(Plain):\n    def share(self, model): pass",
        {"test_ranks_start_from_the_same_weights"},
    ),
    "a norm that is not returned before clipping": (
        "Strategy",
        "class FaultyOps(Ops):\n"
        "    def clip_norm_(self, parameters, max_norm, norm_type=2.0):\n"
        "        super().clip_norm_(parameters, max_norm, norm_type)\n"
        "        return super().clip_norm_(parameters, 1e9, norm_type)\n"
        "class Faulty(Plain):\n    ops = FaultyOps",
        {"test_clip_norm"},
    ),
    "momentum lost": (
        "Strategy",
        "class FaultyState(State):\n    def optimizer_values(self, optimizer): return {}\n"
        "class Faulty(Plain):\n    state = FaultyState",
        {"test_save_and_load_resume_exactly"},
    ),
    "strictness ignored": (
        "Strategy",
        "class FaultyState(State):\n"
        "    def load_full(self, unit, values, *, strict=True): return super().load_full(unit, values, strict=False)\n"
        "class Faulty(Plain):\n    state = FaultyState",
        {"test_strict_load_names_what_is_wrong", "test_load_of_nothing_is_an_error"},
    ),
    "a model that stays wrapped": (
        "Strategy",
        "class Faulty(Plain):\n    def unwrap(self, model): return torch.nn.Sequential(model)",
        {
            "test_unwrap_gives_the_users_model",
            # All that read the model's state through unwrap.
            "test_loss_and_gradients_equal_plain_torch",
            "test_ranks_start_from_the_same_weights",
            "test_inputs_without_buffers_do_nothing",
            "test_clip_norm",
            "test_clip_value",
            "test_strict_load_names_what_is_wrong",
            "test_scale",
            "test_full_state_round_trip",
            "test_no_sync_then_sync_equals_one_big_batch",
        },
    ),
    "a device that says yes to everything": (
        "Device",
        "class Faulty(CpuDevice):\n    def supports(self, capability): return Support(ok=True)",
        {"test_unknown_capability_is_no_with_reason", "test_capability_is_honest"},
    ),
    "a device that is absent without a reason": (
        "Device",
        "class Faulty(CpuDevice):\n    def available(self): return Support(ok=False)",
        {"test_available_answers_with_a_reason"},
    ),
    "a generator that is not restored": (
        "Device",
        "class RNG(CpuRNG):\n    def set_state(self, state): pass\n"
        "class Faulty(CpuDevice):\n    def __init__(self):\n        super().__init__(); self.rng = RNG()",
        {"test_generator_round_trip"},
    ),
    "a vendor package imported too early": (
        "Device",
        "class Faulty(CpuDevice):\n    def __init__(self):\n        super().__init__(); import pyclbr",
        {"test_nothing_of_the_vendor_is_imported_unless_available"},
    ),
    "a precision that cannot be restored": (
        "Precision",
        "class Faulty(Bf16):\n    def restore(self, model): return model",
        {"test_restore_undoes_convert"},
    ),
    "a precision that does nothing": (
        "Precision",
        "class Faulty(Bf16):\n    def convert(self, model): return model",
        {"test_convert_computes_in_the_plans_dtype"},
    ),
    "a precision that accepts every device": (
        "Precision",
        "class Faulty(Bf16):\n    def check(self, device): pass",
        {"test_check_refuses_with_the_devices_reason"},
    ),
    "a tracker that loses its steps": (
        "Tracker",
        "class Faulty(Lines):\n    def log(self, values, step=None, **kwargs): super().log(values, None)",
        {"test_start_log_finish"},
    ),
    "a tracker that loses early values": (
        "Tracker",
        "class Faulty(Lines):\n"
        "    def log(self, values, step=None, **kwargs):\n"
        "        if self.file is not None: super().log(values, step)",
        {"test_log_before_start"},
    ),
    "a checkpoint that is visible too early": (
        "CheckpointIO",
        "class Faulty(Folders):\n    def begin(self, path):\n        sink = super().begin(path); self.commit(sink); return sink",
        {
            "test_uncommitted_is_unseen",
            "test_abort_leaves_nothing",
            "test_round_trip",
            "test_unknown_names_are_errors",
            "test_listed_and_latest",
            "test_damage_is_found_in_every_file",
            "test_a_lost_file_is_found",
        },
    ),
    "a checkpoint that is not verified": (
        "CheckpointIO",
        "class Faulty(Folders):\n    def digest(self, path): return ''",
        {"test_damage_is_found_in_every_file", "test_a_lost_file_is_found"},
    ),
    "a command without help": (
        "Command",
        "class Faulty(Greet):\n    def configure(self, parser): parser.add_argument('--name')",
        {"test_every_argument_is_explained"},
    ),
    "a launcher that swallows the exit code": (
        "Launcher",
        "class Faulty(Direct):\n    def launch(self, spec): super().launch(spec); return 0",
        {"test_exit_code_is_the_scripts"},
    ),
    "a launcher that does not look first": (
        "Launcher",
        "class Faulty(Direct):\n    def check(self, spec): pass",
        {"test_check_refuses_a_missing_script", "test_check_refuses_unknown_options"},
    ),
    "a weight that is changed": (
        "Quantizer",
        "class Faulty(RowQuantizer):\n    def quantize(self, weight): weight.mul_(2); return super().quantize(weight)",
        {"test_parts_are_plain_and_the_weight_is_left_alone"},
    ),
    "a quantizer that takes anything for its own": (
        "Quantizer",
        "class Faulty(RowQuantizer):\n    def stored(self, linear, found, where): return dict(found)",
        {"test_plain_weights_are_told_apart", "test_parts_of_other_shapes_are_refused"},
    ),
    "layers that lose their bias": (
        "Quantizer",
        "class Faulty(RowQuantizer):\n"
        "    def layer(self, linear, parts, *, movable):\n"
        "        made = super().layer(linear, parts, movable=movable); made.bias = None; return made",
        {"test_a_layer_computes_and_has_the_bias", "test_what_is_saved_comes_back"},
    ),
}
HOOKS = {
    "Collectives": "fixture('factory', lambda: lambda: (gloo(), Faulty())[1])",
    "Strategy": "fixture('factory', lambda: Faulty)",
    "Device": "fixture('device', Faulty)",
    "Precision": "fixture('factory', lambda: Faulty)",
    "Tracker": "fixture('tracker', Faulty)",
    "CheckpointIO": "fixture('store', Faulty)",
    "Command": "fixture('command', Faulty)",
    "Launcher": "fixture('launcher', Faulty)",
    "Quantizer": "fixture('quantizer', Faulty)",
}


def run_suites(folder, suites):
    """Run pytest over the suites of ``parts`` modules; return (passed, failed) names per class, and the output."""
    shutil.copy(HERE / "plain.py.txt", folder / "plain_parts.py")
    shutil.copy(HERE / "plain_light.py.txt", folder / "plain_light.py")
    (folder / "test_it.py").write_text(suites, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(folder)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "accel_core.testing.plugin",
        "-rA",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    found = {}
    for outcome, cls, test in re.findall(
        r"^(PASSED|FAILED|ERROR|XFAIL) test_it\.py::(\w+)::(\w+)", output, re.MULTILINE
    ):
        found.setdefault(cls, {}).setdefault(outcome, set()).add(test)
    return found, output


@pytest.mark.timeout(300)
def test_plain_implementations_pass(tmp_path):
    suites = ["from plain_parts import *"]
    for kind, parts in {
        "Collectives": ("GlooCollectives",),
        "Strategy": ("Plain",),
        "Device": ("CpuDevice", "Absent"),
        "Precision": ("Bf16", "FullPrecision", "Fp16"),
        "Tracker": ("Lines",),
        "CheckpointIO": ("Folders",),
        "Command": ("Greet",),
        "Launcher": ("Direct",),
        "Quantizer": ("RowQuantizer",),
    }.items():
        suites += [suite(f"Test{kind}{part}", kind, part) for part in parts]
    found, output = run_suites(tmp_path, "\n".join(suites))
    assert len(found) == 12, output
    assert not any({"FAILED", "ERROR"} & set(outcomes) for outcomes in found.values()), output


def suite(name, kind, part):
    return f"class {name}(Settings, {kind}Conformance):\n    fixed = {HOOKS[kind].replace('Faulty', part)}\n    locals()[fixed.name] = fixed\n"


@pytest.mark.timeout(300)
def test_planted_faults_are_found_by_the_tests_that_look_for_them(tmp_path):
    suites, names = ["from plain_parts import *"], {}
    for number, (fault, (kind, code, _)) in enumerate(FAULTS.items()):
        # In modules of their own, so that new interpreters can import the classes.
        (tmp_path / f"fault_{number}.py").write_text(
            f"from plain_{'light' if kind in LIGHT else 'parts'} import *\n{code}\n"
        )
        suites.append(
            f"import fault_{number}\n" + suite(f"TestFault{number}", kind, f"fault_{number}.Faulty")
        )
        names[fault] = f"TestFault{number}"
    found, output = run_suites(tmp_path, "\n".join(suites))
    wrong = {}
    for fault, (_, _, expected) in FAULTS.items():
        outcomes = found.get(names[fault], {})
        failed = outcomes.get("FAILED", set()) | outcomes.get("ERROR", set())
        if failed != expected:
            wrong[fault] = {"not found by": expected - failed, "failed as well": failed - expected}
    assert not wrong, f"{wrong}\n{output[-20000:]}"


def test_standard_tests_cannot_be_overridden_or_dropped(tmp_path):
    code = textwrap.dedent("""
        from plain_parts import *
        class Base(Settings, CommandConformance):
            @pytest.fixture
            def command(self): return Greet()
        class TestKept(Base):
            def test_own(self): pass
        class TestOverridden(Base):
            def test_help_is_one_line(self): pass
        class TestDropped(Base):
            test_help_is_one_line = None
        class TestWithReason(Base):
            @pytest.mark.xfail(reason="the help of this one is a poem", strict=True)
            def test_help_is_one_line(self, command): assert False
        class TestWithoutReason(Base):
            @pytest.mark.xfail
            def test_help_is_one_line(self, command): assert False
    """)
    found, output = run_suites(tmp_path, code)
    guard = "test_no_standard_test_was_overridden"
    for cls, outcome in {
        "Kept": "PASSED",
        "Overridden": "FAILED",
        "Dropped": "FAILED",
        "WithReason": "PASSED",
        "WithoutReason": "FAILED",
    }.items():
        assert guard in found[f"Test{cls}"][outcome], output
    assert "TestOverridden overrides or drops test_help_is_one_line of CommandConformance" in output


def test_the_guard_itself_cannot_be_overridden():
    with pytest.raises(TypeError, match="overrides test_no_standard_test_was_overridden"):
        type("Sly", (Conformance,), {"test_no_standard_test_was_overridden": None})
