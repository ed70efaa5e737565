"""docs/language.md is what its generator gives, and describes every function of the language."""
from __future__ import annotations

import inspect
import runpy
from pathlib import Path

from tilelang.lang.builtins import PUBLIC
from tilelang.layouts import svg

GENERATOR = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate.py"))
EXAMPLES = {name: text for section in GENERATOR["EXAMPLES"].values() for name, text in section.items()}


def test_the_page_is_what_the_generator_gives() -> None:
    page = GENERATOR["PAGE"].read_text()
    assert page == GENERATOR["page"](), "docs/language.md is not up to date: python docs/generate.py"
    assert page.count("\n#### ") == len(PUBLIC)


def test_the_pictures_are_what_the_generator_draws() -> None:
    drawn = {name: svg(layout) for name, layout in GENERATOR["LAYOUTS"].items()}
    assert drawn == {path.stem: path.read_text() for path in GENERATOR["PICTURES"].iterdir()}


def test_every_function_has_a_docstring_and_an_example_that_calls_it() -> None:
    assert sorted(EXAMPLES) == sorted(PUBLIC)
    for name, text in EXAMPLES.items():
        assert inspect.getdoc(PUBLIC[name])
        statement = {"logical_not": "not "}.get(name, f".{name}(")
        assert statement in text, f"the example of {name} does not call it"


def test_examples_print_the_same_as_machine_code() -> None:
    """Three digits after the point are shown: what a few ulp change is not."""
    clusters = GENERATOR["EXAMPLES"]["Clusters of programs"]  # which the CPU has not
    for name, kernel in GENERATOR["kernels"](EXAMPLES).items():
        result = GENERATOR["printed"](kernel, "emulate:cuda:sm_90a" if name in clusters else "cpu")
        assert result == GENERATOR["printed"](kernel, "reference") != "", name
