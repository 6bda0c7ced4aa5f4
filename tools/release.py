"""Release one package: state its version, date its changelog, and check a tag against both.

python tools/release.py accel-core 0.1.1        edits __about__.py and CHANGELOG.md, prints the tag to push
python tools/release.py --check accel-core-v0.1.1    prints the distribution that the tag releases
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from workspace import ROOT, Package, packages, requirement_name

_TAG = re.compile(r"(?P<dist>[a-z0-9-]+)-v(?P<version>\d[^-]*)")
_UNRELEASED = re.compile(r"^## (?:\S+ - )?unreleased$", re.MULTILINE)


class ReleaseError(ValueError):
    """The package is not ready for the release that was asked for; says what to change."""


def bump(package: Package, version: str, known: Sequence[Package], today: str) -> str:
    """Write ``version`` into the package and date its changelog; return the tag to push.

    Raises:
        ReleaseError: if the version does not grow, nothing is noted as unreleased, or a dependent's range
            would shut the new version out.
    """
    from packaging.version import Version

    before = package.version
    if Version(version) < Version(before):
        message = f"{package.dist} is at {before}; {version} is older"
        raise ReleaseError(message)
    changelog = package.path / "CHANGELOG.md"
    text = changelog.read_text()
    if not section(text, _UNRELEASED):
        message = f"{changelog} has no entries under a heading '## <version> - unreleased'"
        raise ReleaseError(message)
    shut_out = [other.dist for other in known if not _allows(other, package.dist, version)]
    if shut_out:
        message = f"widen the range of {package.dist} in {', '.join(shut_out)}: it does not allow {version}"
        raise ReleaseError(message)
    package.about.write_text(package.about.read_text().replace(f'"{before}"', f'"{version}"'))
    changelog.write_text(_UNRELEASED.sub(f"## {version} - {today}", text, count=1))
    return f"{package.dist}-v{version}"


def check(tag: str, known: Sequence[Package]) -> Package:
    """Return the package that ``tag`` releases.

    Raises:
        ReleaseError: if the tag names no package, or not the version its code and changelog state.
    """
    match = _TAG.fullmatch(tag)
    by_name = {package.dist: package for package in known}
    if match is None or match["dist"] not in by_name:
        message = f"{tag} is not <distribution>-v<version> of one of {', '.join(by_name)}"
        raise ReleaseError(message)
    package, version = by_name[match["dist"]], match["version"]
    if package.version != version:
        message = f"{tag}: {package.about} says {package.version}"
        raise ReleaseError(message)
    dated = re.compile(rf"^## {re.escape(version)} - \d{{4}}-\d{{2}}-\d{{2}}$", re.MULTILINE)
    if not section((package.path / "CHANGELOG.md").read_text(), dated):
        message = f"{tag}: {package.path / 'CHANGELOG.md'} has no dated section with entries for {version}"
        raise ReleaseError(message)
    return package


def section(changelog: str, heading: re.Pattern[str]) -> str:
    """Return the text between the first line that ``heading`` matches and the next heading; empty if none."""
    match = heading.search(changelog)
    return changelog[match.end() :].partition("\n## ")[0].strip() if match else ""


def _allows(package: Package, dist: str, version: str) -> bool:
    """Say whether every requirement of ``package`` on ``dist`` lets ``version`` in."""
    from packaging.requirements import Requirement

    lines: list[str] = tomllib.loads((package.path / "pyproject.toml").read_text())["project"]["dependencies"]
    concerned = [Requirement(line) for line in lines if requirement_name(line) == dist]
    return all(requirement.specifier.contains(version, prereleases=True) for requirement in concerned)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Bump a version, or check a tag; return 1 with the reason when the release cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", nargs="?", choices=[package.dist for package in packages(root)])
    parser.add_argument("version", nargs="?")
    parser.add_argument("--check", metavar="TAG")
    options = parser.parse_args(arguments)
    known = packages(root)
    try:
        if options.check:
            print(check(options.check, known).dist)
        elif options.version:
            package = next(package for package in known if package.dist == options.dist)
            print(bump(package, options.version, known, f"{datetime.now(UTC):%Y-%m-%d}"))
        else:
            parser.error("give a distribution and its new version, or --check and a tag")
    except ReleaseError as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
