"""Compile the stand-in once per torch and Python; needs a C++ compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("standin.cpp")
HEADER = Path(__file__).with_name("streams.hpp")
NAME = "accel_standin"


def obstacle() -> str:
    """Return why the stand-in cannot be built here; empty when it can."""
    compiler = _compiler()
    if shutil.which(compiler) is None:
        return f"the stand-in device needs the C++ compiler {compiler!r}, which is not there"
    if sys.platform != "linux":
        return "the stand-in device was only ever built on Linux"
    return ""


def build() -> Path:
    """Return the compiled stand-in, made now unless this torch and Python have it. Takes some seconds once.

    It is kept in ``ACCEL_STANDIN_CACHE``, by default a folder of this user among the temporary files.
    Raises RuntimeError with the compiler's words when it does not compile.
    """
    import torch

    key = repr((SOURCE.read_text(), HEADER.read_text(), torch.__version__, sys.version, _compiler()))
    folder = _cache() / hashlib.sha256(key.encode()).hexdigest()[:16]
    made = folder / f"{NAME}.so"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        fresh = Path(work) / made.name
        done = subprocess.run(_command(fresh), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the stand-in device did not compile:\n{done.stderr[-4000:]}")
        # Renamed when whole: another process may be building too.
        fresh.replace(made)
    return made


def _command(target: Path) -> list[str]:
    import torch
    from torch.utils import cpp_extension

    libraries = str(Path(torch.__file__).parent / "lib")
    includes = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_path("include"))]
    abi = int(getattr(torch, "compiled_with_cxx11_abi", lambda: True)())
    return [
        _compiler(),
        "-std=c++20",
        "-O0",
        "-w",
        "-fPIC",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        f"-DTORCH_EXTENSION_NAME={NAME}",
        *includes,
        str(SOURCE),
        "-o",
        str(target),
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        "-lc10",
        "-ltorch",
        "-ltorch_cpu",
        "-ltorch_python",
    ]


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _cache() -> Path:
    named = os.environ.get("ACCEL_STANDIN_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"accel-standin-{os.getuid()}"


__all__ = ["build", "obstacle"]
