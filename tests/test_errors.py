"""The exception tree and the wording of unknown names."""

from __future__ import annotations

import pickle
import re

import pytest

from qvl_lab import errors
from qvl_lab.errors import ConfigError, ImageError, QvlError, UnknownNameError, nearest


def drawn_tree() -> dict[str, str]:
    """Child to parent, as the module's docstring draws it."""
    tree, path = {}, ["QvlError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = 1 + len(found[1]) // 4
            path[depth:] = [found[2]]
            tree[found[2]] = path[depth - 1]
    return tree


def test_the_docstring_draws_the_whole_tree():
    classes = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, QvlError) and value is not QvlError
    }
    assert len(classes) > 8
    assert drawn_tree() == classes


def test_settings_errors_are_value_errors_and_input_errors_are_not():
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(ImageError, ValueError)


def test_unknown_name_says_what_is_allowed_and_what_was_meant():
    error = UnknownNameError("precision", "bf61", ("fp32", "bf16", "auto"))
    assert str(error) == (
        "unknown precision 'bf61'. Did you mean 'bf16'? Allowed: auto, bf16, fp32"
    )
    assert (error.kind, error.name, error.nearest) == ("precision", "bf61", "bf16")


def test_unknown_name_without_a_near_match_gives_only_the_list():
    assert str(UnknownNameError("GPU", "zzz", ["L4"])) == "unknown GPU 'zzz'. Allowed: L4"


def test_unknown_name_survives_pickling():
    error = UnknownNameError("GPU", "A1OG", ["A10G", "L4"])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnknownNameError
    assert (str(copy), copy.allowed) == (str(error), ["A10G", "L4"])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("rtx4090", "RTX 4090"),
        ("BATCHSIZE", "batch_size"),
        ("batch_size", "batch_size"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest_ignores_case(name, match):
    assert nearest(name, ["RTX 4090", "batch_size"]) == match
