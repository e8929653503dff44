"""What tests of engines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qvl_lab.session import Lab


@pytest.fixture
def ids_of(monkeypatch) -> Callable[[Lab], Lab]:
    """Answers of a lab are token ids instead of text: different ids can decode to equal text."""

    def patch(lab: Lab) -> Lab:
        tokenizer = lab.loaded.tokenizer

        def decode(tokens: list[int], **_: Any) -> str:
            return " ".join(map(str, tokens))

        monkeypatch.setattr(tokenizer, "decode", decode)
        monkeypatch.setattr(
            tokenizer, "batch_decode", lambda rows, **_: [decode(row.tolist()) for row in rows]
        )
        return lab

    return patch
