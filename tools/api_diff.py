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

from workspace import ROOT, Package, packages


def public_api(package: Package) -> list[str]:
    """Return one line for each public module, class, function, method and constant of ``package``."""
    loader = griffe.GriffeLoader(search_paths=[package.path / "src"], allow_inspection=False)
    module = loader.load(package.import_name)
    return sorted(set(_lines(module)))


def _lines(item: griffe.Object | griffe.Alias) -> Iterator[str]:
    for name, member in item.members.items():
        if not _public(name, member, item):
            continue
        if isinstance(member, griffe.Alias):
            # Re-exported: the target is described where it is defined.
            yield f"{item.path}.{name} = {member.target_path}"
        elif isinstance(member, griffe.Function):
            yield from (f"{one.path}{_signature(one)}" for one in (member.overloads or [member]))
        elif isinstance(member, griffe.Attribute):
            yield f"{member.path}{f': {member.annotation}' if member.annotation else ''}"
        elif isinstance(member, griffe.Class):
            yield f"class {member.path}({', '.join(str(base) for base in member.bases)})"
            yield from _lines(member)
        else:
            yield f"module {member.path}"
            yield from _lines(member)


def _public(name: str, member: griffe.Object | griffe.Alias, parent: griffe.Object | griffe.Alias) -> bool:
    """Say whether ``name`` is promised: in ``__all__``, or defined here without a leading underscore."""
    alias = isinstance(member, griffe.Alias)
    if parent.exports is not None and (alias or not member.is_module):
        return name in [str(export) for export in parent.exports]
    return not alias and (not name.startswith("_") or name in ("__init__", "__call__"))


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
