"""Compare the public names and signatures of every package with the snapshot in docs/reference/api.

The sources are read, not imported, so this runs without torch. ``--write`` accepts the present state: its
difference is what a reviewer reads.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import griffe

from workspace import ROOT, Package, packages, re_exported


def public_api(package: Package) -> list[str]:
    """Return one line for each name that a door of ``package`` gives, and for what it consists of."""
    known = packages(package.path.parents[1])
    loader = griffe.GriffeLoader(search_paths=[other.path / "src" for other in known], allow_inspection=False)
    # What a class inherits from a package below is part of what it offers.
    for other in known:
        if other.dist in package.requires:
            loader.load(other.import_name)
    module = loader.load(package.import_name)
    lines: set[str] = set()
    for path in package.source.rglob("__init__.py"):
        door = module
        for part in path.parent.relative_to(package.source).parts:
            door = door[part]
        for name in re_exported(path):
            member = door[name]
            if isinstance(member, griffe.Alias) and not _is_of(package, member.target_path):
                # It comes from another distribution, whose own snapshot describes it.
                lines.add(f"{door.path}.{name} = {member.target_path}")
            else:
                lines.update(_describe(f"{door.path}.{name}", member))
    return sorted(lines)


def _is_of(package: Package, path: str) -> bool:
    return path.partition(".")[0] == package.import_name


def _describe(path: str, member: griffe.Object | griffe.Alias) -> Iterator[str]:
    target = member.final_target if isinstance(member, griffe.Alias) else member
    if isinstance(target, griffe.Function):
        yield from (f"{path}{_signature(one)}" for one in (target.overloads or [target]))
    elif isinstance(target, griffe.Attribute):
        yield f"{path}{f': {target.annotation}' if target.annotation else ''}"
    elif isinstance(target, griffe.Class):
        yield f"class {path}({', '.join(str(base) for base in target.bases)})"
        for name, part in target.all_members.items():
            if _public(name):
                yield from _describe(f"{path}.{name}", part)
    elif not target.is_init_module:
        yield f"module {path}"
        for name, part in target.members.items():
            listed = target.exports is None or name in map(str, target.exports)
            if listed and _public(name) and not isinstance(part, griffe.Alias):
                yield from _describe(f"{path}.{name}", part)


def _public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def _signature(function: griffe.Function) -> str:
    returns = f" -> {function.returns}" if function.returns else ""
    return f"{_parameters(function.parameters)}{returns}"


def _parameters(parameters: griffe.Parameters) -> str:
    """Write parameters as in the source, with ``/``, ``*``, annotations and defaults."""
    parts, starred = [], False
    kinds = [parameter.kind for parameter in parameters]
    for index, parameter in enumerate(parameters):
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not starred:
            parts.append("*")
            starred = True
        prefix = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            kind, ""
        )
        starred = starred or prefix == "*"
        annotation = f": {parameter.annotation}" if parameter.annotation else ""
        shown = parameter.default is not None and not prefix
        parts.append(f"{prefix}{parameter.name}{annotation}{f' = {parameter.default}' if shown else ''}")
        last = kinds[index + 1 : index + 2] != [griffe.ParameterKind.positional_only]
        if kind is griffe.ParameterKind.positional_only and last:
            parts.append("/")
    return f"({', '.join(parts)})"


def compare(package: Package, snapshot: Path) -> list[str]:
    """Return the lines that were removed (``-``) and added (``+``) since the snapshot was written."""
    before = snapshot.read_text().splitlines() if snapshot.exists() else []
    changes = difflib.unified_diff(before, public_api(package), lineterm="", n=0)
    return [line for line in changes if not line.startswith(("---", "+++", "@@"))]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Print what changed in any package; return 1 if the snapshots do not say so yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the snapshots say what the sources say")
    options = parser.parse_args(arguments)
    folder = root / "docs" / "reference" / "api"
    changed = False
    for package in packages(root):
        snapshot = folder / f"{package.dist}.txt"
        changes = compare(package, snapshot)
        if changes:
            changed = True
            print(f"{package.dist}:", *changes, sep="\n  ")
        if options.write:
            folder.mkdir(parents=True, exist_ok=True)
            snapshot.write_text("".join(f"{line}\n" for line in public_api(package)))
    if changed and not options.write:
        print("\nPublic names changed. If that is meant: nox -s api -- --write, and note it in CHANGELOG.md.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
