"""Laws of the house: which module may import which, read from the source of every one."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bayesspec

FLOORS = (
    ("bayesspec", "bayesspec.exceptions", "bayesspec.runtime", "bayesspec.units", "bayesspec.grid"),
    ("bayesspec.observation", "bayesspec.physics"),
    ("bayesspec.batch", "bayesspec.io", "bayesspec.distributions"),
    ("bayesspec.nn", "bayesspec.noise_level"),
    ("bayesspec.model", "bayesspec.bundle"),
    ("bayesspec.inference",),
    ("bayesspec.results",),
    ("bayesspec.inference.denoise", "bayesspec.inference.arguments"),
    ("bayesspec.survey", "bayesspec.terminal", "bayesspec.options", "bayesspec.training"),
    ("bayesspec.benchmark", "bayesspec.demo"),
    ("bayesspec.cli",),
)
"""From the ground up. A module stands where the longest of these names that is the beginning of its own says,
and imports what is on its own floor or below it."""

WINGS = {
    "bayesspec.training": ("bayesspec.benchmark",),
    "bayesspec.benchmark": (),
    "bayesspec.demo": ("bayesspec.benchmark",),
}
"""What stands beside the others, and who but the command line imports it."""

TOP = "bayesspec.cli"


def _modules() -> dict[str, Path]:
    root = Path(bayesspec.__file__).parent
    names = {
        path: ["bayesspec", *path.relative_to(root).with_suffix("").parts] for path in root.rglob("*.py")
    }
    return {".".join(name).removesuffix(".__init__"): path for path, name in names.items()}


MODULES = _modules()


def _imported(name: str) -> set[str]:
    """The modules of this package that a module imports: at its head, in functions, and for types alone."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{source}.{alias.name}" for alias in node.names}
            found.update(inside & MODULES.keys())
            if inside - MODULES.keys():
                found.add(source)
    return (found & MODULES.keys()) - {name}


IMPORTS = {name: _imported(name) for name in MODULES}


def _under(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _floor(name: str) -> int:
    """Of the longest name that fits; the package's own fits itself alone."""
    fits = [
        (len(place), floor)
        for floor, places in enumerate(FLOORS)
        for place in places
        if name == place or (place != "bayesspec" and _under(name, place))
    ]
    assert fits, f"{name} stands on no floor"
    return max(fits)[1]


def test_imports_are_found():
    """At the head, relative and absolute; within a function; for types alone; a module, or names of it."""
    assert "bayesspec.exceptions" in IMPORTS["bayesspec.observation"]
    assert "bayesspec.training.recipe" in IMPORTS["bayesspec.cli"]
    assert "bayesspec.model" in IMPORTS["bayesspec.results.result"]
    assert {"bayesspec.results.spectra", "bayesspec.results.star"} <= IMPORTS["bayesspec.results.result"]
    assert "bayesspec.benchmark.corruption" in IMPORTS["bayesspec.benchmark.sets"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_what_is_above_it(name):
    above = sorted(other for other in IMPORTS[name] if _floor(other) > _floor(name))
    assert not above, f"{name} imports {', '.join(above)}"


def test_no_modules_import_each_other():
    """In no circle of whatever length."""
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("wing", WINGS)
def test_wings_stand_apart(wing):
    doors = (wing, *WINGS[wing], TOP)
    guests = [
        name
        for name, imports in IMPORTS.items()
        if any(_under(other, wing) for other in imports) and not any(_under(name, door) for door in doors)
    ]
    assert not guests, f"{', '.join(guests)} import {wing}"
