"""What to run: frozen settings, and TOML files to keep them in.

A configuration has three parts. :class:`ModelSpec` says which weights at which precision,
:class:`ImagePolicy` how many pixels an image may keep, :class:`EngineSpec` how the work is
batched and generated. Field names are unique over the three, so a sweep axis is just a name.
Nothing here loads a model or looks at the hardware.
"""

from qvl_lab.config.backends import (
    CACHE_IMPLEMENTATIONS,
    CACHE_KEYS,
    ENGINES,
    FAST_ONLY,
    EngineSpec,
)
from qvl_lab.config.checks import RENAMED, check_name
from qvl_lab.config.images import (
    BY_TASK,
    NATIVE,
    PILLOW_MAX_PIXELS,
    ImagePolicy,
)
from qvl_lab.config.model import PRECISIONS, ModelSpec
from qvl_lab.config.sampling import SamplingParams
from qvl_lab.config.settings import FIELDS, Config, digest
from qvl_lab.config.sweep import SweepSpec

__all__ = [
    "BY_TASK",
    "CACHE_IMPLEMENTATIONS",
    "CACHE_KEYS",
    "ENGINES",
    "FAST_ONLY",
    "FIELDS",
    "NATIVE",
    "PILLOW_MAX_PIXELS",
    "PRECISIONS",
    "RENAMED",
    "Config",
    "EngineSpec",
    "ImagePolicy",
    "ModelSpec",
    "SamplingParams",
    "SweepSpec",
    "check_name",
    "digest",
]
