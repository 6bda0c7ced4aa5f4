"""The pytest plug-in: each test runs pytest in a process of its own."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Block())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find_spec(name, package)
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest on the given test module; return its output."""

    def run(code, *arguments, conftest=""):
        (tmp_path / "test_it.py").write_text("import os, pytest, threading\n" + textwrap.dedent(code))
        (tmp_path / "conftest.py").write_text(conftest)
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "accel_core.testing.plugin",
            "-rA",
            "-p",
            "no:cacheprovider",
        ]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        done = subprocess.run(
            [*command, "--import-mode=importlib", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    return run


def counts(output):
    """Return the numbers of the last line by their words."""
    last = [line for line in output.splitlines() if " in " in line and line.startswith("=")][-1]
    return {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", last)}


def test_leaks_fail_the_test_that_leaves_them(run):
    output = run("""
        kept = []
        def test_env(): os.environ["LEFT"] = "1"
        def test_env_changed(): os.environ["HOME"] = "/elsewhere"
        def test_env_deleted(): del os.environ["PATH"]
        def test_file(): kept.append(open(__file__))
        def test_socket():
            import socket
            kept.append(socket.socket())
        def test_thread():
            thread = threading.Thread(target=threading.Event().wait, args=(4,), name="forgotten")
            thread.start()
        def test_after_all_of_them():
            assert "LEFT" not in os.environ
            assert os.environ["HOME"] != "/elsewhere"
            assert "PATH" in os.environ
    """)
    assert counts(output) == {"passed": 7, "error": 6}
    for text in (
        "env: LEFT was set to '1' (use monkeypatch)",
        "env: HOME was changed from ",
        "env: PATH was deleted",
        "test_it.py (close it, use with)",
        "is open on socket:",
        "threads: 'forgotten' still runs",
        "test_thread left something behind",
        '@pytest.mark.leaks("<kind>", reason="<why>")',
    ):
        assert text in output


def test_clean_tests_pass(run):
    output = run("""
        import tempfile
        def test_env(monkeypatch): monkeypatch.setenv("SET", "1")
        def test_file(tmp_path):
            with open(tmp_path / "x", "w") as file: file.write("x")
        def test_cycle(tmp_path):
            class Node: pass
            node = Node(); node.self = node; node.file = open(tmp_path / "x", "w")
        def test_thread():
            thread = threading.Thread(target=int); thread.start(); thread.join()
        def test_short_thread(): threading.Thread(target=threading.Event().wait, args=(0.1,)).start()
        def test_output(capfd): os.system("echo x")
        @pytest.fixture(scope="module")
        def module_file(tmp_path_factory):
            with open(tmp_path_factory.mktemp("m") / "x", "w") as file: yield file
        def test_module_fixture(module_file): pass
    """)
    assert counts(output) == {"passed": 7}


def test_process_groups_and_accel_state_are_found(run):
    pytest.importorskip("torch", exc_type=ImportError)
    output = run(
        """
        import sys, types
        def test_group(free_port):
            import torch.distributed as dist
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port}", rank=0, world_size=1)
        def test_no_group_any_more():
            import torch.distributed as dist
            assert not dist.is_initialized()
        class FakeProcess(types.ModuleType):
            # Stands for accel_state.process, which this package cannot depend on.
            state = None
            def current(self): return self.state
            def reset(self): self.state = None
        def test_state():
            sys.modules["accel_state.process"] = FakeProcess("accel_state.process")
            sys.modules["accel_state.process"].state = object()
        def test_no_state_any_more():
            assert sys.modules["accel_state.process"].state is None
        """
    )
    assert counts(output) == {"passed": 4, "error": 2}
    assert "group: a process group is left initialised" in output
    assert "state: accel's process state is still set" in output


def test_leaks_are_allowed_by_kind_and_with_a_reason(run):
    output = run("""
        @pytest.mark.leaks("env", reason="the library sets it on import")
        def test_allowed(): os.environ["LEFT"] = "1"
        @pytest.mark.leaks("files", reason="not this kind")
        def test_other_kind(): os.environ["LEFT"] = "1"
        @pytest.mark.leaks("env")
        def test_no_reason(): pass
        @pytest.mark.leaks("enviroment", reason="misspelt")
        def test_unknown_kind(): pass
    """)
    assert counts(output) == {"passed": 2, "error": 3}
    assert "needs kinds out of env, threads, files, group, state and a reason" in output


def test_missing_hardware_is_skipped_with_its_reason_and_counted(run):
    output = run(
        """
        @pytest.mark.gpu
        def test_gpu(): raise AssertionError
        @pytest.mark.gpu(2)
        def test_two_gpus(): raise AssertionError
        @pytest.mark.mps
        class TestMps:
            def test_one(self): raise AssertionError
            def test_two(self): raise AssertionError
        @pytest.mark.cpu
        def test_cpu(): pass
        def test_unmarked(): pass
        """,
        conftest=BLOCK_TORCH,
    )
    assert counts(output) == {"passed": 2, "skipped": 4}
    assert "hardware: 1 skipped for want of gpu (torch is not installed)" in output
    assert "hardware: 1 skipped for want of gpu (torch is not installed, 2 are needed)" in output
    assert "hardware: 2 skipped for want of mps (torch is not installed)" in output


@pytest.mark.parametrize(
    ("hardware", "kept"),
    [("cpu", {"test_cpu", "test_unmarked"}), ("gpu", {"test_gpu"}), ("mps", {"test_mps"})],
)
def test_only_the_hardware_asked_for(run, hardware, kept):
    output = run(
        """
        @pytest.mark.gpu
        def test_gpu(): pass
        @pytest.mark.mps
        def test_mps(): pass
        @pytest.mark.cpu
        def test_cpu(): pass
        def test_unmarked(): pass
        """,
        "--collect-only",
        "-q",
        "--hardware",
        hardware,
    )
    assert set(re.findall(r"::(test_\w+)", output)) == kept


def test_torch_is_not_imported_for_tests_that_need_no_hardware(run):
    output = run("""
        import sys
        @pytest.mark.cpu
        def test_it(free_port): assert "torch" not in sys.modules and "cloudpickle" not in sys.modules
    """)
    assert counts(output) == {"passed": 1}


def test_without_torch_pool_tests_skip(run):
    output = run("def test_it(pool): raise AssertionError", conftest=BLOCK_TORCH)
    assert counts(output) == {"skipped": 1}
    assert "the pool of workers needs torch" in output


def test_world_runs_once_per_size(run):
    output = run("""
        @pytest.mark.world(2, 4)
        def test_it(world): assert world in (2, 4)
        @pytest.mark.world(2)
        def test_without_the_fixture(): pass
        @pytest.mark.world(2)
        @pytest.mark.parametrize("world", [3])
        def test_own_parameters(world): assert world == 3
        @pytest.mark.world(2)
        @pytest.mark.parametrize("world_size", [3])
        def test_similar_name(world, world_size): assert (world, world_size) == (2, 3)
        def test_no_marker(world): pass
    """)
    assert counts(output) == {"passed": 5, "error": 1}
    assert "@pytest.mark.world(2, 4)" in output
