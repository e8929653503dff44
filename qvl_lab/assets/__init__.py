"""Files that ship with the package: prices, GPU table, the tiny model, notebooks, sample data."""

from pathlib import Path

_HERE = Path(__file__).parent


def asset(name: str) -> Path:
    """Path of a packaged file or folder.

    Notebooks and sample data are copied in when the wheel is built; in a checkout they are
    found at its top level instead.
    """
    packaged = _HERE / name
    return packaged if packaged.exists() else _HERE.parents[1] / name
