"""`pyproject.toml` declares what is imported, and nothing else; the oldest versions it allows are those of CI."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Modules of this repository; scripts and tests import what lies beside them.
OWN = {path.stem for folder in (".", "recipes", "tests") for path in (REPO / folder).glob("*")}
# Packages whose name is not that of their module.
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "xdist": "pytest-xdist", "yaml": "pyyaml"}
# The extras that a file may import from, by the start of its path.
EXTRAS = {
    "ftkit/data/pixels/plugins": {"heic"},
    "ftkit/demo": {"demo"},
    "ftkit/export": {"export"},
    "ftkit/training/loop/sharding": {"deepspeed"},
    "recipes/demo": {"demo"},
    "tests": {"test"},
    "tests/test_demo": {"demo"},
}
TOOLS = {"mypy": "is a command", "ruff": "is a command", "types-pyyaml": "is read by mypy"}
# Declared, and imported by none of ftkit's files.
NOT_IMPORTED = TOOLS | {
    "onnx": "torch.onnx and ONNX Runtime's quantization import it",
    "onnxscript": "torch.onnx imports it",
}
# Their private names are relied on, so the next minor version is tried before it is allowed.
BOUNDED = {"accelerate", "peft", "transformers"}


@cache
def declared(extra: str | None = None) -> dict[str, Requirement]:
    """The packages of an extra and of the extras that it takes in, or what every installation has."""
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = {}
    for requirement in map(Requirement, listed):
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                found |= declared(other)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def imported(path: Path) -> set[str]:
    """The packages that a file imports, wherever it does."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module)
    tops = {name.split(".")[0] for name in modules} - sys.stdlib_module_names - OWN
    return {canonicalize_name(PACKAGES.get(name, name)) for name in tops}


FILES = {
    str(path.relative_to(REPO)): imported(path)
    for folder in ("ftkit", "recipes", "tests")
    for path in sorted((REPO / folder).rglob("*.py"))
}
EVERYTHING = declared() | {name: found for extra in PROJECT["optional-dependencies"]
                           for name, found in declared(extra).items()}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_what_is_imported_is_declared(file):
    allowed = set(declared())
    for start, extras in EXTRAS.items():
        if file.startswith(start):
            allowed |= {name for extra in extras for name in declared(extra)}
    assert FILES[file] <= allowed, f"{file} imports {FILES[file] - allowed}: declare it in pyproject.toml"


def test_what_is_declared_is_imported():
    everywhere = set().union(*FILES.values())
    assert set(EVERYTHING) - everywhere == set(NOT_IMPORTED)


def test_every_installation_has_only_what_ftkit_and_its_recipes_import():
    used = {name for file, names in FILES.items() if not file.startswith("tests") for name in names}
    assert set(declared()) <= used


def test_what_extras_add_is_imported_late():
    """Importing ftkit and any of its recipes works without them."""
    optional = set(EVERYTHING) - set(declared())
    for file in FILES:
        if file.startswith(("ftkit/demo", "tests")):  # the demo's module is imported late itself
            continue
        top = ast.parse((REPO / file).read_text(encoding="utf-8")).body
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in top if isinstance(node, ast.ImportFrom) and not node.level}
        assert not {canonicalize_name(name.split(".")[0]) for name in names} & optional, file


def test_only_libraries_whose_private_names_count_have_an_upper_bound():
    bounds = {name: [spec for spec in found.specifier if spec.operator == "<"] for name, found in EVERYTHING.items()}
    assert {name for name, upper in bounds.items() if upper} == BOUNDED


def test_ci_tries_the_oldest_versions_that_are_allowed():
    lines = (REPO / ".ci/oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#")]
    tried = {canonicalize_name(name): Version(version) for name, version in pins}
    for name, requirement in EVERYTHING.items():
        lower = [Version(spec.version) for spec in requirement.specifier if spec.operator == ">="]
        if name == "torchvision":  # it wants one version of torch, and torch's bound is its own
            assert not lower and name in tried
        elif name not in ("deepspeed", *TOOLS):  # CI tries the newest; DeepSpeed 0.18 fails with gloo in torch 2.10
            assert [tried.get(name)] == lower, f"{requirement}: .ci/oldest.txt has {tried.get(name)}"
    assert set(tried) <= set(EVERYTHING)
