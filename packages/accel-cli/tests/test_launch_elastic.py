"""Several processes through torch's elastic launcher. A launch costs seconds: each test asks for much."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

pytest.importorskip("torch")


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the launcher ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_get_their_places_and_our_settings(folder):
    folder.write("logging.py", "raise ImportError('a file beside the script was imported by the launcher')")
    done = folder.launch("--num_processes", "2", "--mixed_precision", "bf16", "show.py", "x", "--y", "-h")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    places = []
    for rank in (0, 1):
        shown = folder.shown(rank)
        environ = shown["environ"]
        places.append([environ[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")])
        assert shown["argv"] == ["show.py", "x", "--y", "-h"]
        assert shown["torch"] is False
        assert environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
        assert environ["MASTER_ADDR"] == "127.0.0.1"
        # Together they take every CPU once.
        assert int(environ["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert places == [["0", "0", "2", "2"], ["1", "1", "2", "2"]]
    assert folder.shown(0)["environ"]["MASTER_PORT"] == folder.shown(1)["environ"]["MASTER_PORT"]


def test_the_exit_code_is_that_of_the_rank_that_failed(folder):
    folder.write(
        "fail.py",
        """
        import os, sys, time
        if os.environ["RANK"] == "1":
            sys.exit(7)
        time.sleep(60)
        """,
    )
    done = folder.launch("--num_processes", "2", "fail.py")
    assert done.returncode == 7
    assert "rank 1" in done.stderr
    assert "exited with code 7" in done.stderr
    assert "rank 0 (" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refusal_of_torch_s_launcher_is_said_in_two_lines(folder):
    done = folder.launch("--rdzv_backend", "pigeon", "show.py")
    assert done.returncode == 1
    assert "pigeon" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert "Traceback" in folder.launch("--rdzv_backend", "pigeon", "--debug", "show.py").stderr


def test_a_rank_killed_by_a_signal_shows_as_in_a_shell_and_quiet_says_nothing(folder):
    folder.write(
        "die.py",
        """
        import os, signal, time
        if os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        """,
    )
    done = folder.launch("--num_processes", "2", "-q", "die.py")
    assert (done.returncode, done.stderr) == (128 + signal.SIGKILL, "")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_every_worker(folder, sent):
    folder.write(
        "wait.py",
        """
        import os, signal, sys, time
        rank = os.environ["RANK"]
        def stop(number, frame):
            open(f"stopped.{rank}", "w").write(str(number))
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        open(f"ready.{rank}", "w").write(str(os.getpid()))
        time.sleep(60)
        """,
    )
    command = folder.command("launch", "--num_processes", "2", "wait.py")
    process = subprocess.Popen(
        command,
        cwd=folder.path,
        env=folder.environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ready = [folder.path / f"ready.{rank}" for rank in (0, 1)]
    try:
        wait_for(lambda: all(path.exists() and path.read_text() for path in ready), process)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 128 + sent
    assert [(folder.path / f"stopped.{rank}").read_text() for rank in (0, 1)] == [str(int(sent))] * 2
    assert sent.name in stderr
    for path in ready:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_restarts_and_kept_output_with_one_process(folder):
    folder.write(
        "flaky.py",
        """
        import os, sys
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        print("attempt", attempt, flush=True)
        open(f"port.{attempt}", "w").write(os.environ["MASTER_PORT"])
        sys.exit(75 if attempt == 0 else 0)  # by its own wish
        """,
    )
    done = folder.launch(
        "--num_processes",
        "1",
        "--max_restarts",
        "1",
        "--log_dir",
        "logs",
        "--tee",
        "3",
        "--role",
        "trainer",
        "flaky.py",
    )
    assert done.returncode == 0, done.stderr
    kept = sorted(path.read_text() for path in (folder.path / "logs").rglob("stdout.log"))
    assert kept == ["attempt 0\n", "attempt 1\n"]
    assert "attempt 1" in done.stdout
    assert "trainer0" in done.stdout
    assert "exited with code 75. All processes are started again (1 of 1)." in done.stderr
    assert len(done.stderr.splitlines()) == 1
    # Torch's launcher keeps its store: another attempt must not find the addresses of this one in it.
    assert (folder.path / "port.0").read_text() != (folder.path / "port.1").read_text()


LEAVE = """
    import os, signal, subprocess, sys, time
    rank = os.environ["RANK"]
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    def stop(number, frame):
        open(f"stopped.{rank}", "a").write(f"{number} ")
        time.sleep(0.5 + int(rank))
        alive = helper.poll() is None
        helper.kill()
        sys.exit(75 if alive else 1)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
    open(f"ready.{rank}", "w").write(os.environ["TORCHELASTIC_RESTART_COUNT"])
    time.sleep(60)
    """


def told(folder, sent, *options):
    """Launch the script ``leave.py`` on two processes, signal the launcher, and return how it ended."""
    command = folder.command("launch", "--num_processes", "2", *options, "leave.py")
    process = subprocess.Popen(
        command,
        cwd=folder.path,
        env=folder.environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        ready = [folder.path / f"ready.{rank}" for rank in (0, 1)]
        wait_for(lambda: all(path.exists() and path.read_text() for path in ready), process)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1], ids=lambda sent: sent.name)
def test_who_is_told_to_stop_saves_and_leaves_and_a_scheduler_comes_back(folder, sent):
    """Processes of the workers, such as those of loaders, are not signalled; nothing is started again."""
    folder.write("leave.py", LEAVE)
    code, stderr = told(folder, sent, "--max_restarts", "3")
    assert code == 75, stderr
    assert "the processes left with code 75, to be started again." in stderr
    assert len(stderr.splitlines()) == 1
    assert [(folder.path / f"stopped.{rank}").read_text() for rank in (0, 1)] == [f"{int(sent)} "] * 2
    assert (folder.path / "ready.0").read_text() == "0"


def test_who_does_not_leave_in_time_is_killed(folder):
    folder.write("leave.py", LEAVE.replace("0.5 + int(rank)", "0.1 + 60 * int(rank)"))
    code, stderr = told(folder, signal.SIGTERM, "--grace_period", "1")
    assert code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in stderr


def test_two_machines_meet_and_compute(folder):
    """Two launchers on this machine stand for two machines; the second starts first and waits."""
    folder.write(
        "meet.py",
        """
        import json, os
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        total = torch.tensor([float(rank + 1)])
        dist.all_reduce(total)
        dist.destroy_process_group()
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_PORT")
        json.dump([total.item(), *(os.environ[name] for name in names)], open(f"met.{rank}.json", "w"))
        """,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    common += ["--main_process_port", port, "--cpu"]
    running = [
        subprocess.Popen(
            folder.command("launch", *common, "--machine_rank", rank, "meet.py"),
            cwd=folder.path,
            env=folder.environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    try:
        for process in running:
            _, stderr = process.communicate(timeout=100)
            assert process.returncode == 0, stderr
    finally:
        for process in running:
            process.kill()
    for rank in (0, 1):
        met = json.loads((folder.path / f"met.{rank}.json").read_text())
        assert met == [3.0, str(rank), "0", "2", str(rank), str(port)]
