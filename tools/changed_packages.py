"""Print the packages that a change concerns, with their dependents, as JSON for the workflows' matrix."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from workspace import ROOT, Package, dependents, packages

# A change here concerns every package. Other places outside packages/ have checks that always run.
EVERYTHING = ("pyproject.toml", "hatch.toml", "noxfile.py", "tools/*", ".ci/*", ".github/*")
NOTHING = ("tools/bench/*",)
PROSE = ("README.md", "CHANGELOG.md", "LICENSE")


def changed_files(since: str | None, root: Path = ROOT) -> list[str] | None:
    """Return the paths that differ from the commit ``since``, or None if git cannot tell.

    Untracked files count. Without ``since``: since this branch left main, or on main the commit before.
    """
    base = (
        _git(root, "rev-parse", "--verify", "--quiet", f"{since}^{{commit}}") if since else _left_main(root)
    )
    if not base:
        return None
    different = _git(root, "diff", "--name-only", "--no-renames", base[0], "--")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard")
    return sorted({*(different or ()), *(untracked or ())})


def concerned(files: Iterable[str] | None, known: Sequence[Package]) -> set[str]:
    """Return the packages whose tests ``files`` may change: their own, and those of their dependents.

    Raises:
        ValueError: if a path under packages/ belongs to no package.
    """
    everything = {package.dist for package in known}
    if files is None:
        return everything
    found = set()
    for file in files:
        parts = PurePosixPath(file).parts
        if parts[0] == "packages" and len(parts) > 2 and parts[1] in everything:
            if parts[-1] not in PROSE:
                found.add(parts[1])
        elif parts[0] == "packages":
            message = f"{file} belongs to no package: packages/{parts[1]} has no pyproject.toml"
            raise ValueError(message)
        elif touches([file], EVERYTHING) and not touches([file], NOTHING):
            return everything
    return dependents(found, tuple(known))


def touches(files: Iterable[str] | None, covered: Iterable[str]) -> bool:
    """Say whether one of ``files`` matches a pattern; ``*`` crosses folders, and unknown files mean yes."""
    if files is None:
        return True
    patterns = [pattern + "*" if pattern.endswith("/") else pattern for pattern in covered]
    return any(fnmatch(file, pattern) for file in files for pattern in patterns)


def _left_main(root: Path) -> list[str] | None:
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    for main in ("origin/main", "main"):
        base = _git(root, "merge-base", main, "HEAD")
        if base and base != head:
            return base
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD^")


def _git(root: Path, *arguments: str) -> list[str] | None:
    """Return the lines that git prints, or None if it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, check=False, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else None


def main() -> None:
    """Print the concerned packages as a JSON list on one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", help="the commit to compare with (default: where this branch left main)")
    parser.add_argument("--all", action="store_true", help="name every package")
    options = parser.parse_args()
    files = None if options.all else changed_files(options.since)
    print(json.dumps(sorted(concerned(files, packages()))))


if __name__ == "__main__":
    main()
