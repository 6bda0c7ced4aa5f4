"""One process: the script takes the place of the launcher."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


def test_the_script_is_the_process_that_was_started(folder):
    process = subprocess.Popen(folder.command("launch", "show.py"), cwd=folder.path, env=folder.environ)
    assert process.wait(60) == 0
    assert folder.shown()["pid"] == process.pid


def test_arguments_of_the_script_are_its_own(folder):
    words = ["--num_processes", "3", "-m", "--", "--help", "-h", "", "a b", "--cpu=1", "-1"]
    done = folder.launch("--cpu", "show.py", *words)
    assert done.returncode == 0, done.stderr
    assert folder.shown()["argv"] == ["show.py", *words]


@pytest.mark.parametrize("words", [["--"], ["--cpu", "--"]], ids=len)
def test_two_dashes_may_stand_before_the_script(folder, words):
    assert folder.launch(*words, "show.py", "--", "x").returncode == 0
    assert folder.shown()["argv"] == ["show.py", "--", "x"]


def test_nothing_is_said_and_nothing_is_set_without_options(folder):
    done = folder.launch("show.py")
    assert (done.stdout, done.stderr) == ("", "")
    before = {key: value for key, value in folder.environ.items() if key != "_"}
    after = {
        key: value for key, value in folder.shown()["environ"].items() if key in before or "ACCEL" in key
    }
    # The interpreter may add LC_CTYPE; what was there is as it was.
    assert after == before


def test_options_reach_the_script_through_the_environment(folder):
    words = ["--cpu", "--mixed-precision", "bf16", "--gradient_accumulation_steps", "4", "--debug"]
    words += ["--num_cpu_threads_per_process", "1", "--enable_cpu_affinity"]
    done = folder.launch(*words, "show.py")
    assert done.returncode == 0, done.stderr
    environ = folder.shown()["environ"]
    assert {key: value for key, value in environ.items() if key.startswith("ACCELERATE")} == {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DEBUG_MODE": "true",
        "ACCELERATE_CPU_AFFINITY": "true",
    }
    assert environ["OMP_NUM_THREADS"] == "1"


def test_selected_accelerators_are_all_the_script_can_see(folder):
    assert folder.launch("--cpu", "--gpu_ids", "0, 2", "show.py").returncode == 0
    assert folder.shown()["environ"]["CUDA_VISIBLE_DEVICES"] == "0,2"


def test_an_address_is_handed_on(folder):
    assert (
        folder.launch("--main_process_ip", "10.0.0.1", "--main_process_port", "29511", "show.py").returncode
        == 0
    )
    environ = folder.shown()["environ"]
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "29511")


def test_the_exit_code_is_the_script_s(folder):
    folder.write("seven.py", "raise SystemExit(7)")
    assert folder.launch("seven.py").returncode == 7


def test_a_signal_reaches_the_script(folder):
    folder.write(
        "wait.py",
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(33))
        print("ready", flush=True)
        time.sleep(60)
        """,
    )
    command = folder.command("launch", "wait.py")
    with subprocess.Popen(command, cwd=folder.path, env=folder.environ, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 33


def test_a_module(folder):
    folder.write("pack/__init__.py", "")
    folder.write("pack/show.py", (folder.path / "show.py").read_text())
    done = folder.launch("-m", "pack.show", "x", "-m")
    assert done.returncode == 0, done.stderr
    shown = folder.shown()
    assert shown["name"] == "__main__"
    assert shown["argv"][1:] == ["x", "-m"]


def test_a_package_with_a_main_module(folder):
    folder.write("pack/__init__.py", "")
    folder.write("pack/__main__.py", "print('ran')")
    assert folder.launch("--module", "pack").stdout == "ran\n"


def test_a_folder_with_a_main_file(folder):
    folder.write("app/__main__.py", "print('ran')")
    assert folder.launch("app").stdout == "ran\n"


def test_a_program_that_is_not_python(folder):
    folder.write("run.sh", "#!/bin/sh\necho $1 $ACCELERATE_MIXED_PRECISION\n").chmod(0o755)
    assert folder.launch("--no_python", "--mixed_precision=no", "./run.sh", "hello").stdout == "hello no\n"
    assert folder.launch("--no-python", "echo", "found", "-n").stdout == "found -n\n"


def test_a_program_without_a_first_line_that_says_how(folder):
    folder.write("run", "not a program\n").chmod(0o755)
    done = folder.launch("--no_python", "./run")
    assert done.returncode == 2
    assert "could not be started" in done.stderr


def test_as_a_module_with_interpreter_options(folder):
    command = [sys.executable, "-X", "dev", "-um", "accel_cli.commands.launch", "--cpu", "show.py", "x"]
    done = folder.run(command=command)
    assert done.returncode == 0, done.stderr
    shown = folder.shown()
    assert shown["flags"]["dev"] is True
    assert shown["flags"]["orig"][1:] == ["-X", "dev", "-u", "show.py", "x"]


def test_the_installed_command(folder):
    script = Path(sysconfig.get_path("scripts")) / "accel"
    done = folder.run(command=[str(script), "launch", "show.py", "x"])
    assert done.returncode == 0, done.stderr
    assert folder.shown()["argv"] == ["show.py", "x"]


def test_a_rank_that_mpirun_started_starts_one_script(folder):
    mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
    assert folder.launch("--num_processes", "4", "show.py", env=mpi).returncode == 0
    assert folder.shown()["environ"]["OMPI_COMM_WORLD_RANK"] == "2"
    assert "RANK" not in folder.shown()["environ"]


REFUSED = {
    "missing": (["nope.py"], ["'nope.py' does not exist"]),
    "near": (["shw.py"], ["did you mean 'show.py'?"]),
    "empty folder": (["empty"], ["'empty' is a folder without a __main__.py"]),
    "no module": (["-m", "pack.nope"], ["No module named 'pack.nope'"]),
    "no package": (["-m", "nope.a"], ["No module named 'nope'"]),
    "package": (["-m", "pack"], ["'pack' is a package without a __main__ module"]),
    "path as module": (["-m", "show.py"], ["No module named 'show.py'", "no .py at the end"]),
    "module without python": (["-m", "--no_python", "pack"], ["--module and --no_python contradict"]),
    "no program": (["--no_python", "no-such-program"], ["'no-such-program' does not exist"]),
    "not executable": (["--no_python", "./show.py"], ["cannot be executed", "chmod +x ./show.py"]),
    "not on PATH": (["--no_python", "show.py"], ["cannot be executed", "write ./show.py"]),
    "precision": (
        ["--mixed_precision", "fp17", "show.py"],
        ["mixed_precision", "fp17", "command line", "bf16"],
    ),
    "fp8": (["--mixed_precision", "fp8", "show.py"], ["fp8", "not available in this version"]),
    "fsdp": (["--use_fsdp", "--zero_stage=2", "show.py"], ["--use_fsdp", "--zero_stage", "not available"]),
    "unknown": (["--num_proceses", "2", "show.py"], ["--num_proceses", "Did you mean --num_processes?"]),
    "abbreviation": (["--num_proc=2", "show.py"], ["unknown option --num_proc."]),
    "number": (["--num_processes", "two", "show.py"], ["--num_processes", "two"]),
    "none": (["--num_processes", "0", "show.py"], ["num_processes", "must be at least 1"]),
    "port": (["--main_process_port", "99999", "show.py"], ["main_process_port", "65535"]),
    "no script": (["--cpu"], ["script.py"]),
    "machine": (["--machine_rank", "5", "show.py"], ["machine_rank=5", "not one of 1 machine"]),
    "streams": (["--tee", "9", "show.py"], ["tee='9'", "3 both"]),
    "rendezvous": (["--rdzv_conf", "fast", "show.py"], ["rdzv_conf='fast'", "key=value"]),
    "grace": (["--grace_period", "-1", "show.py"], ["grace_period", "0 seconds or more"]),
    "interval": (["--monitor_interval", "nan", "show.py"], ["monitor_interval", "finite"]),
    "devices": (["--gpu_ids", "first", "show.py"], ["gpu_ids='first'", "numbers"]),
    "devices twice": (["--cpu", "--gpu_ids", "0,1,0", "show.py"], ["gpu_ids", "different numbers"]),
    "crowd": (["--cpu", "--num_processes", "100000", "show.py"], ["100000 processes", "at most"]),
    "log file": (["--log_dir", "show.py/logs", "show.py"], ["show.py' is a file", "--log_dir"]),
    "address": (
        ["--num_processes", "2", "--main_process_ip", "nonsense.invalid", "show.py"],
        ["'nonsense.invalid' is not known here", "--main_process_ip"],
    ),
    "other address": (
        ["--num_processes", "2", "--main_process_ip", "192.0.2.1", "show.py"],
        ["'192.0.2.1' is not that of this machine", "--num_machines"],
    ),
    "cpu and gpu": (["--cpu", "--multi_gpu", "show.py"], ["contradicts --cpu"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_started_is_refused_before_anything_is(folder, case):
    folder.write("empty/notes.txt", "")
    folder.write("pack/__init__.py", "open('imported', 'w')")
    words, texts = REFUSED[case]
    done = folder.launch(*words)
    assert done.returncode == 2, done.stderr
    for text in texts:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder.path / "shown.0.json").exists()
    assert not (folder.path / "imported").exists()


def test_every_refused_option_is_named_at_once(folder):
    done = folder.launch("--use_fsdp", "--tpu", "--downcast_bf16", "--fp8-format", "E4M3", "show.py")
    assert done.returncode == 2
    for name in ("--use_fsdp", "--tpu", "--downcast_bf16", "--fp8_format"):
        assert name in done.stderr


def test_the_compiler_is_passed_on(folder):
    words = ("--dynamo_backend", "torhchxla_trace_once", "--dynamo-mode=max-autotune")
    switches = ("--dynamo_use_fullgraph", "--dynamo_use_dynamic", "--dynamo_use_regional_compilation")
    assert folder.launch(*words, *switches, "show.py").returncode == 0
    environ = folder.shown()["environ"]
    # The documented option has a slip of the pen in it, the variable has not.
    assert environ["ACCELERATE_DYNAMO_BACKEND"] == "TORCHXLA_TRACE_ONCE"
    assert environ["ACCELERATE_DYNAMO_MODE"] == "max-autotune"
    for switch in switches:
        assert environ[f"ACCELERATE_{switch.removeprefix('--').upper()}"] == "true"
    assert folder.launch("--dynamo_backend", "no", "show.py").returncode == 0
    assert folder.shown()["environ"]["ACCELERATE_DYNAMO_BACKEND"] == "NO"


def test_an_option_of_a_later_version_with_its_default_asks_for_nothing(folder):
    words = ["--fsdp_version", "1", "--megatron_lm_tp_degree=1", "--no_tpu_cluster"]
    done = folder.launch(*words, "show.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "1"),
        ("ACCELERATE_USE_MEGATRON_LM", "yes"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_DOWNCAST_BF16", "true"),
    ],
)
def test_a_variable_asks_for_something_that_is_not_there(folder, name, value):
    done = folder.launch("show.py", env={name: value})
    assert done.returncode == 2, done.stderr
    assert name in done.stderr
    assert "said by environment" in done.stderr
    off = "no" if name.endswith("BACKEND") else "false"
    assert folder.launch("show.py", env={name: off}).returncode == 0


@pytest.mark.parametrize("words", [["show.py"], ["--num_processes", "2", "show.py"]], ids=["one", "two"])
def test_closed_output_is_no_obstacle(folder, words):
    if "--num_processes" in words:
        pytest.importorskip("torch")
    command = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh", *folder.command("launch", "--cpu", *words)]
    assert folder.run(command=command).returncode == 0
    assert folder.shown()["argv"] == ["show.py"]


def test_a_script_in_a_job_does_not_join_it_unasked(folder):
    job = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    done = folder.launch("show.py", env=job)
    assert done.returncode == 2
    assert "belongs to a running job" in done.stderr
    assert "rank 1 of 2" in done.stderr
    pytest.importorskip("torch")
    assert folder.launch("--num_processes", "1", "show.py", env=job).returncode == 0
    environ = folder.shown(0)["environ"]
    assert [environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_script_that_cannot_be_read(folder):
    folder.write("secret.py", "").chmod(0)
    done = folder.launch("secret.py")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
