from __future__ import annotations

import pytest

import release
from release import ReleaseError, bump, check
from workspace import packages


@pytest.fixture
def core(repository):
    return next(package for package in packages(repository) if package.dist == "accel-core")


def test_a_release_states_the_version_and_dates_the_changelog(repository, core):
    assert bump(core, "0.1.1", packages(repository), "2026-01-02") == "accel-core-v0.1.1"
    assert core.version == "0.1.1"
    assert "## 0.1.1 - 2026-01-02\n\n- First release." in (core.path / "CHANGELOG.md").read_text()
    assert check("accel-core-v0.1.1", packages(repository)) == core


def test_a_version_that_dependents_shut_out_is_refused(repository, core):
    with pytest.raises(
        ReleaseError, match="widen the range of accel-core in accel-state: it does not allow 0.2.0"
    ):
        bump(core, "0.2.0", packages(repository), "2026-01-02")
    assert core.version == "0.1.0"


def test_versions_do_not_shrink(repository, core):
    with pytest.raises(ReleaseError, match="accel-core is at 0.1.0; 0.0.9 is older"):
        bump(core, "0.0.9", packages(repository), "2026-01-02")


@pytest.mark.parametrize(
    "text", ["# Changelog\n", "# Changelog\n\n## 0.2 - unreleased\n\n## 0.1.0 - 2025-01-01\n\n- x\n"]
)
def test_a_release_without_entries_is_refused(repository, core, text):
    (core.path / "CHANGELOG.md").write_text(text)
    with pytest.raises(ReleaseError, match="no entries under a heading"):
        bump(core, "0.1.1", packages(repository), "2026-01-02")


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("v0.1.0", "is not <distribution>-v<version>"),
        ("accel-cor-v0.1.0", "is not <distribution>-v<version>"),
        ("accel-core-v0.1.1", "says 0.1.0"),
        ("accel-core-v0.1.0", "no dated section with entries for 0.1.0"),
    ],
)
def test_a_tag_that_disagrees_is_refused(repository, tag, reason):
    with pytest.raises(ReleaseError, match=reason):
        check(tag, packages(repository))


def test_the_command_prints_the_reason_and_fails(repository, capsys):
    assert release.main(["--check", "accel-core-v9"], repository) == 1
    assert "says 0.1.0" in capsys.readouterr().err
    assert release.main(["accel-core", "0.1.2"], repository) == 0
    assert capsys.readouterr().out == "accel-core-v0.1.2\n"
    assert release.main(["--check", "accel-core-v0.1.2"], repository) == 0
    assert capsys.readouterr().out == "accel-core\n"
