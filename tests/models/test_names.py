"""Names of models, checked without torch."""

from __future__ import annotations

import pytest

from qvl_lab.errors import ModelError, UnknownNameError
from qvl_lab.models.names import SIZES, TINY, check_name
from qvl_lab.models.shapes import SHAPES


def test_every_shape_has_a_name_and_every_name_a_shape():
    assert (TINY, *SHAPES) == SIZES
    for size in SIZES:
        check_name(f"random:{size}")
    check_name("random:8B")
    check_name("owner/name")  # nothing is asked of the hub


def test_names_and_folders_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        check_name("tinny")
    with pytest.raises(UnknownNameError, match="Did you mean 'random:8b'"):
        check_name("random:8bb")
    with pytest.raises(ModelError, match="does not exist"):
        check_name(f"{tmp_path}/none/at/all")
    with pytest.raises(ModelError, match="no model folder"):
        check_name(str(tmp_path))
