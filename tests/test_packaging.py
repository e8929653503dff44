"""pyproject.toml, constraints.txt and environment.yml say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
REQUIREMENTS = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]
ASKED_FOR = {
    "jupyterlab",
    "torch",
    "transformers",
    "pillow",
    "pandas",
    "matplotlib",
    "ipywidgets",
    "torch-tb-profiler",
}


def pins(lines: list[str]) -> dict[str, str]:
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()) for line in lines]
    return {canonicalize_name(m[1]): m[2] for m in found if m}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text("utf-8").splitlines())
PIP_PART = next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))


def test_environment_pins_every_runtime_dependency_and_nothing_else():
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["int8"]]
    names = {canonicalize_name(Requirement(text).name) for text in wanted}
    assert set(pins(PIP_PART)) == names
    assert names >= ASKED_FOR


def test_environment_pins_are_those_of_the_constraints():
    assert {name: CONSTRAINTS.get(name) for name in pins(PIP_PART)} == pins(PIP_PART)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_constraints_pin_every_requirement_within_its_range(requirement: Requirement):
    version = CONSTRAINTS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def test_conda_part_is_strict_match_specs():
    rattler = pytest.importorskip("rattler")
    specs = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]
    names = [rattler.MatchSpec(spec, strict=True).name.normalized for spec in specs]
    assert names == ["python", "pip"]
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"}


def test_make_targets_are_the_documented_ones():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    documented = "help report test test-slow test-full test-gpu test-browser test-all coverage"
    assert phony and phony[1] == f"{documented} figures-check lint types notebooks lab"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_links_point_to_files(name: str):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links and not missing
