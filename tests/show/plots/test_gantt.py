"""The timeline of a profile's stages."""

from __future__ import annotations

import pandas as pd
import pytest

from qvl_lab.errors import ConfigError
from qvl_lab.show import plots

COLUMNS = ["path", "start_s", "end_s", "cpu_s"]


def test_every_stage_is_a_row_and_every_span_a_bar():
    rows = [
        ("vision", 1, 3, 0),
        ("decode/lm_head", 4, 5, 0),
        ("decode", 3, 7, 0),
        ("vision", 8, 9, 0),
    ]
    ax = plots.timeline(pd.DataFrame(rows, columns=COLUMNS))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["vision encoder", "decode tokens"]
    vision, decode = (
        [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in bars.get_paths()]
        for bars in ax.collections
    )
    assert (vision, decode) == ([(1, 3), (8, 9)], [(3, 7)])
    assert ax.get_xlim() == (0, 9)
    assert "seconds" in ax.get_xlabel()


def test_nothing_seen_is_an_error():
    with pytest.raises(ConfigError, match="no stage was seen"):
        plots.timeline(pd.DataFrame([], columns=COLUMNS))
