"""Make a new package of the middle floor, identical in shape to the others.

python tools/new_package.py accel-thing "One sentence that says what it alone is good for" [--torch]
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from workspace import ROOT

_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{dist}"
dynamic = ["version"]
description = "{description}"
readme = "README.md"
license = "Apache-2.0"
license-files = ["LICENSE"]
requires-python = ">=3.11"
authors = [{{ name = "The accel authors" }}]
classifiers = [
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
]
dependencies = [
    "accel-core>=0.1,<0.2",
{torch}]

[tool.hatch.version]
path = "src/{name}/__about__.py"

[tool.hatch.build.targets.wheel]
packages = ["src/{name}"]

[tool.hatch.build.targets.sdist]
include = ["/src", "/tests", "/README.md", "/LICENSE", "/CHANGELOG.md"]
"""

_DOOR = '''\
"""{description}."""

from .__about__ import __version__ as __version__
'''

_TEST = """\
from importlib.metadata import version

import {name}


def test_the_version_is_the_one_installed() -> None:
    assert {name}.__version__ == version("{dist}")
"""


def files(dist: str, description: str, *, torch: bool) -> dict[str, str]:
    """Return the text of every file of a new package, by its path inside the package."""
    name = dist.replace("-", "_")
    dependency = '    "torch>=2.6",\n' if torch else ""
    return {
        "pyproject.toml": _PYPROJECT.format(dist=dist, description=description, name=name, torch=dependency),
        "README.md": f"# {dist}\n\n{description}.\n",
        "CHANGELOG.md": f"# Changelog of {dist}\n\n## 0.1.0 - unreleased\n\n- First release.\n",
        f"src/{name}/__init__.py": _DOOR.format(description=description),
        f"src/{name}/__about__.py": '__version__ = "0.1.0"\n',
        f"src/{name}/py.typed": "",
        "tests/test_about.py": _TEST.format(name=name, dist=dist),
    }


def create(dist: str, description: str, *, torch: bool, root: Path = ROOT) -> Path:
    """Write a new package and name it in the import contracts; return its folder.

    Raises:
        ValueError: if the name is not of the form accel-<word>.
        FileExistsError: if there is such a package already.
    """
    if not re.fullmatch(r"accel-[a-z][a-z0-9]*(-[a-z0-9]+)*", dist):
        message = f"{dist!r} is no name for a package here: use accel-<word>, in lower case"
        raise ValueError(message)
    folder = root / "packages" / dist
    folder.mkdir(parents=True)
    for path, text in files(dist, description, torch=torch).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    shutil.copyfile(root / "LICENSE", folder / "LICENSE")
    settings = root / "pyproject.toml"
    settings.write_text(with_contracts(settings.read_text(), dist.replace("-", "_"), torch=torch))
    return folder


def with_contracts(settings: str, name: str, *, torch: bool) -> str:
    """Return the root settings with ``name`` among import-linter's packages and layers."""
    additions = {"root_packages = [\n": f'    "{name}",\n', 'layers = [\n    "accel",\n    "': f"{name} | "}
    if not torch:
        additions["source_modules = ["] = f'"{name}", '
    for anchor, addition in additions.items():
        if anchor not in settings:
            message = f"pyproject.toml has no {anchor!r} to add {name} after"
            raise ValueError(message)
        settings = settings.replace(anchor, anchor + addition, 1)
    return settings


def main() -> int:
    """Make the package that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist")
    parser.add_argument("description")
    parser.add_argument("--torch", action="store_true", help="the package needs torch")
    options = parser.parse_args()
    try:
        folder = create(options.dist, options.description.rstrip("."), torch=options.torch)
    except (ValueError, FileExistsError) as fault:
        print(fault, file=sys.stderr)
        return 1
    print(f"{folder.relative_to(ROOT)} is ready; `nox -s tests wheels layers` already covers it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
