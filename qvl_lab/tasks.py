"""Tasks: their names."""

from __future__ import annotations

#: The task of items that name none.
NO_TASK = "none"
