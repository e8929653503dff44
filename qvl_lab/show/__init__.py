"""What people read: figures, the report, and the words both use."""

from qvl_lab.show import plots as plots

__all__ = ["plots"]
