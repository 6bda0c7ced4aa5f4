import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import accel_core
from accel_core.lazy import lazy_door


def modules():
    """Every module of accel_core but the testing tools, which have tests of their own."""
    found = ["accel_core"]
    for info in pkgutil.walk_packages(accel_core.__path__, "accel_core."):
        if not info.name.startswith("accel_core.testing"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", modules())
def test_every_public_name_is_there(name):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public) is not None
        assert public in dir(module)


def test_a_module_name_leads_to_the_module():
    for name in ("logging", "config", "environment", "errors", "topology", "window", "plugins", "nested"):
        assert getattr(accel_core, name) is importlib.import_module(f"accel_core.{name}")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_its_door_only():
    loaded = run(
        "import sys, accel_core; print(*sorted(m for m in sys.modules if m.startswith('accel')))"
    ).split()
    assert loaded == ["accel_core", "accel_core.__about__", "accel_core.lazy"]


def test_no_module_but_the_file_reader_loads_anything_beyond_the_standard_library():
    names = modules()
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    # Import hooks of editable installs may be there; third-party libraries may not.
    loaded = {name for name in run(code).split() if not name.startswith("_")} - {"sitecustomize"}
    assert loaded == {"accel_core"}


def test_a_wrong_name_comes_with_the_nearest():
    with pytest.raises(
        AttributeError, match=r"module 'accel_core' has no attribute 'Topolgy'. Did you mean 'Topology'\?"
    ):
        getattr(accel_core, "Topolgy")  # noqa: B009
    with pytest.raises(ImportError):
        from accel_core import nothing_like_it  # noqa: F401


def test_the_nearest_name_is_looked_for_only_when_somebody_reads_the_error():
    # `from package import module` and `hasattr` ask the door first, and throw its error away.
    code = (
        "import sys, accel_core\n"
        "assert not hasattr(accel_core, 'Topolgy')\n"
        "from accel_core import slurm\n"
        "print('difflib' in sys.modules)"
    )
    assert run(code).strip() == "False"


def test_a_name_is_looked_up_once(tmp_path, monkeypatch):
    package = tmp_path / "door_sample"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "thing.py").write_text("Thing = object()\nthing = 3\n")
    (package / "plain.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    door = importlib.import_module("door_sample")
    try:
        get, listed = lazy_door("door_sample", {"Thing": ".thing", "thing": ".thing", "plain": ".plain"})
        assert {"Thing", "thing", "plain"} <= set(listed())
        assert get("Thing") is vars(door)["Thing"]
        assert get("thing") == 3
        assert isinstance(get("plain"), types.ModuleType)
    finally:
        for name in [name for name in sys.modules if name.startswith("door_sample")]:
            del sys.modules[name]
