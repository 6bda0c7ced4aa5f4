import sys

import pytest

from accel_core import plugins
from accel_core.errors import NotInstalledError, StateError, UnknownNameError

GROUP = "accel.gadgets"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path into which distributions are put as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(dist, points, group=GROUP, **modules):
        info = tmp_path / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {target}\n" for name, target in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)
        plugins.offered.cache_clear()

    plugins.offered.cache_clear()
    yield install
    plugins.offered.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("gadget_"):
            del sys.modules[name]


def test_a_third_partys_name_is_found_and_imported_when_asked_for(site):
    site("gadgets", {"saw": "gadget_saw:Saw", "axe": "gadget_axe:Axe"}, gadget_saw="class Saw: sharp = True")
    assert plugins.names(GROUP) == ["axe", "saw"]
    assert "gadget_saw" not in sys.modules
    assert plugins.find(GROUP, "saw").sharp
    assert "gadget_axe" not in sys.modules


def test_an_unknown_name_comes_with_the_nearest(site):
    site("gadgets", {"hammer": "gadget_hammer:Hammer"})
    with pytest.raises(
        UnknownNameError, match=r"Unknown gadget 'hamer'\. Did you mean 'hammer'\? Known: hammer"
    ):
        plugins.find(GROUP, "hamer")


def test_a_known_name_that_is_not_installed_comes_with_the_pip_line(monkeypatch):
    monkeypatch.setattr(plugins, "offered", lambda group: {})
    with pytest.raises(NotInstalledError, match="The tracker 'jsonl' is not installed") as caught:
        plugins.find(plugins.TRACKERS, "jsonl")
    assert caught.value.fix == "pip install accel-trackers"
    with pytest.raises(UnknownNameError, match="Did you mean 'jsonl'"):
        plugins.find(plugins.TRACKERS, "jsnl")


def test_one_name_from_two_distributions_is_an_error_that_names_both(site):
    site("gadgets", {"saw": "gadget_saw:Saw"})
    site("more-gadgets", {"saw": "gadget_other:Saw"})
    with pytest.raises(StateError) as caught:
        plugins.find(GROUP, "saw")
    assert "gadget_saw:Saw (gadgets)" in str(caught.value)
    assert "gadget_other:Saw (more-gadgets)" in str(caught.value)


def test_the_same_offer_twice_is_no_conflict(site):
    site("gadgets", {"saw": "gadget_saw:Saw"}, gadget_saw="class Saw: pass")
    site("gadgets-again", {"saw": "gadget_saw:Saw"})
    assert plugins.find(GROUP, "saw").__name__ == "Saw"


def test_an_implementation_that_fails_to_import_shows_its_own_error(site):
    site("gadgets", {"saw": "gadget_broken:Saw"}, gadget_broken="import no_such_library")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        plugins.find(GROUP, "saw")


def test_what_our_distributions_declare_is_what_the_table_of_names_says():
    """The names that the core knows as ours are those in the metadata of our packages."""
    plugins.offered.cache_clear()
    for group, ours in plugins._OFFERED_BY.items():
        declared = {
            name: point.dist.name
            for name, point in plugins.offered(group).items()
            if point.dist is not None and point.dist.name.startswith("accel-")
        }
        installed = set(declared.values())
        assert declared == {name: dist for name, dist in ours.items() if dist in installed}
