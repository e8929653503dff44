"""What to run: frozen settings, and TOML files to keep them in.

A configuration has three parts. :class:`ModelSpec` says which weights at which precision,
:class:`ImagePolicy` how many pixels an image may keep, and :class:`Transformers` or
:class:`Fast` how the work is batched and generated. Each field has a flat name that is unique over
the parts, so a sweep axis is just a name.
Nothing here loads a model or looks at the hardware.
"""

from qvl_lab.config.backends import (
    AUTO,
    BACKENDS,
    CACHE_IMPLEMENTATIONS,
    CACHE_KEYS,
    ENGINES,
    CacheSettings,
    EngineSpec,
    Fast,
    Transformers,
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
from qvl_lab.config.settings import FIELDS, Config, default_of, digest, engines_with, flat_fields
from qvl_lab.config.sweep import SweepSpec

__all__ = [
    "AUTO",
    "BACKENDS",
    "BY_TASK",
    "CACHE_IMPLEMENTATIONS",
    "CACHE_KEYS",
    "ENGINES",
    "FIELDS",
    "NATIVE",
    "PILLOW_MAX_PIXELS",
    "PRECISIONS",
    "RENAMED",
    "CacheSettings",
    "Config",
    "EngineSpec",
    "Fast",
    "ImagePolicy",
    "ModelSpec",
    "SamplingParams",
    "SweepSpec",
    "Transformers",
    "check_name",
    "default_of",
    "digest",
    "engines_with",
    "flat_fields",
]
