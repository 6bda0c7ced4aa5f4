"""Threads of communication come to rest."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import zlib

import pytest

from accel_core.settling import let_threads_rest

PR_SET_NAME = 15


def work(name: str, seconds: float, begun: threading.Event) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
    begun.set()
    data = bytes(64 << 20)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        zlib.crc32(data)  # without the interpreter's lock, as gloo's threads


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what threads do")
@pytest.mark.parametrize(
    ("name", "waits"), [("pt_gloo_runloop", True), ("gloo_tcp_loop", True), ("other", False)]
)
def test_threads_of_gloo_are_waited_for(name: str, waits: bool) -> None:
    begun = threading.Event()
    thread = threading.Thread(target=work, args=(name, 0.5, begun))
    thread.start()
    begun.wait()
    let_threads_rest()
    over = not thread.is_alive()
    thread.join()
    assert over is waits
