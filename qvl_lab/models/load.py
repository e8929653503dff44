"""Loading: a folder or hub id, true shapes with random weights, or the embedded model.

Importing this module imports torch and transformers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import is_torchvision_available
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from qvl_lab.assets import asset
from qvl_lab.config import ModelSpec
from qvl_lab.errors import ConfigError, ModelError, PrecisionError, UnknownNameError
from qvl_lab.models.architecture import Architecture
from qvl_lab.models.memory import out_of_memory
from qvl_lab.models.names import RANDOM, TINY, check_name, locate
from qvl_lab.models.quantize import quantize, torchao_quantization
from qvl_lab.models.shapes import (
    build,
    random_config,
    random_generation_config,
)
from qvl_lab.workloads.resize import PixelLimits

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with its tokenizer and image processor.

    Attributes
    ----------
    spec : ModelSpec
        With ``device`` and ``precision`` resolved.
    random_weights : bool
        Answers carry no meaning.
    load_s : float
        Wall time of loading without imports.
    """

    spec: ModelSpec
    model: Any
    tokenizer: Any
    image_processor: Any
    limits: PixelLimits
    random_weights: bool
    load_s: float

    @property
    def device(self) -> torch.device:
        return torch.device(self.spec.device)

    @property
    def sizes(self) -> Architecture:
        """The sizes in the config. Raises a ConfigError for a family that is not known."""
        return Architecture.from_config(self.model.config.to_dict())

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return self.sizes.kv_bytes_per_token(base_dtype(self.spec).itemsize)


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load what ``spec`` names.

    Raises
    ------
    UnknownNameError
        If the model is neither a known name, nor a folder, nor of the form ``owner/name``.
    PrecisionError
        If the device or the installation lacks the precision.
    ModelError
        If the files are missing, damaged, or not of a Qwen vision-language model.
    """
    spec = resolve(spec)
    started = time.perf_counter()
    files: Path | str = asset(TINY)
    if spec.model.startswith("random:"):
        model = _random_model(spec)
    else:
        files = files if spec.model == TINY else locate(spec.model)
        model = _pretrained(spec, files)
    model = quantize(model, spec.precision).eval()
    tokenizer, image_processor = _processors(spec, files)
    limits = _limits(image_processor)
    _synchronise(torch.device(spec.device))
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        limits=limits,
        random_weights=spec.model.startswith("random:"),
        load_s=time.perf_counter() - started,
    )


def resolve(spec: ModelSpec) -> ModelSpec:
    """Fill in ``device`` and ``precision`` where they say "auto", and check what is there.

    Raises
    ------
    PrecisionError, ConfigError
        If the machine lacks the device or the precision.
    """
    device = _device(spec)
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UnknownNameError("device", spec.device, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device 'cuda' was asked for, but torch sees no CUDA device; "
            "use device='cpu', or check the driver with 'qvl-lab doctor'"
        )
    index = device.partition(":")[2]
    if kind == "cuda" and index and not index.isdecimal():
        raise UnknownNameError("device", spec.device, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: there are {torch.cuda.device_count()} CUDA devices")
    has_bf16 = kind == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    precision = spec.precision
    if precision == "auto":
        precision = "fp32" if kind == "cpu" else ("bf16" if has_bf16 else "fp16")
    if precision in ("bf16", "int8", "fp8") and not has_bf16:
        raise PrecisionError(
            f"{torch.cuda.get_device_name()} has no bf16, which {precision} needs "
            "(compute capability 8.0); use precision='fp16' or 'fp32'"
        )
    if precision == "int8":
        torchao_quantization()
    if precision == "fp8" and kind == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        raise PrecisionError(
            f"{torch.cuda.get_device_name()} has no 8-bit floats (compute capability 8.9); use "
            "precision='int8' or 'bf16'"
        )
    return replace(spec, device=device, precision=precision)


def _device(spec: ModelSpec) -> str:
    """The device that was asked for; "auto" is the GPU, where torch sees one."""
    if spec.device != "auto":
        return spec.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def warn_of_emulation(spec: ModelSpec) -> None:
    """Say that a CPU has no 8-bit floats, if ``spec`` wants to compute with them on one."""
    if (spec.precision, _device(spec)) == ("fp8", "cpu"):
        log.warning(
            "fp8 on a CPU is emulated: answers are those of fp8, speed and memory are not; "
            "measure them on a GPU of compute capability 8.9 or later"
        )


def check_model(spec: ModelSpec) -> None:
    """Look a model's config up without loading anything.

    Raises
    ------
    UnknownNameError, ModelError
        As :func:`load_model`.
    """
    check_name(spec.model)
    if spec.model == TINY or spec.model.startswith(RANDOM):
        return
    try:
        PretrainedConfig.get_config_dict(locate(spec.model), revision=spec.revision or "main")
    except (OSError, ValueError) as e:
        raise _cannot_load(spec.model, e) from e


def parameter_count(model: Any) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def base_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype of activations, and of all weights but those that int8 and fp8 quantise."""
    if spec.precision in ("int8", "fp8"):
        return torch.float32 if spec.device == "cpu" else torch.bfloat16
    return DTYPES[spec.precision]


def read_architecture(model: str) -> Architecture:
    """Read the sizes of a model without its weights.

    Parameters
    ----------
    model : str
        ``"random:8b"``, ``"tiny"``, a folder, or a hub id.

    Raises
    ------
    UnknownNameError, ModelError
        As :func:`load_model`.
    """
    if model.startswith("random:"):
        return Architecture.from_config(random_config(model).to_dict())
    files = asset(TINY) if model == TINY else locate(model)
    try:
        return Architecture.from_config(AutoConfig.from_pretrained(files).to_dict())
    except (OSError, ValueError) as e:
        raise ModelError(f"cannot read the config of {model}: {e}") from e


def _random_model(spec: ModelSpec) -> Any:
    config = random_config(spec.model)
    try:
        model = build(config, base_dtype(spec), spec.device, spec.attn_implementation, spec.seed)
    except (ValueError, ImportError) as e:
        raise ModelError(f"cannot build {spec.model}: {e}") from e
    model.generation_config = random_generation_config(config)
    return model


def _pretrained(spec: ModelSpec, files: Path | str) -> Any:
    options: dict[str, Any] = {
        "revision": spec.revision or "main",
        "trust_remote_code": spec.trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(files, **options)
        if not (config.model_type.startswith("qwen") and "_vl" in config.model_type):
            raise ModelError(
                f"{files} is a {config.model_type!r} model; qvl_lab runs Qwen vision-language "
                "models (qwen3_vl, qwen3_vl_moe, qwen2_5_vl, qwen2_vl)"
            )
        if spec.attn_implementation:
            options["attn_implementation"] = spec.attn_implementation
        with quiet(spec.model == TINY):
            model, info = AutoModelForImageTextToText.from_pretrained(
                files,
                dtype=base_dtype(spec),
                device_map={"": spec.device},
                use_safetensors=True,  # never unpickle weights
                output_loading_info=True,
                **options,
            )
        if missing := sorted(info["missing_keys"]):  # transformers would fill them at random
            raise ModelError(
                f"{files} lacks {len(missing)} of the model's weights, such as {missing[0]}; "
                "copy or download it again"
            )
        return model
    except Exception as e:  # damaged files fail in many ways, each library with errors of its own
        if isinstance(e, ModelError) or out_of_memory(e):
            raise
        raise _cannot_load(spec.model, e) from e


def _cannot_load(model: str, error: Exception) -> ModelError:
    return ModelError(
        f"cannot load {model}: {error}\nGive a folder with config.json and *.safetensors, "
        "or a hub id that this machine can reach"
    )


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Show no progress bar of transformers while the block runs, if that is wanted."""
    change = wanted and is_progress_bar_enabled()
    if change:
        disable_progress_bar()
    try:
        yield
    finally:
        if change:
            enable_progress_bar()


def _processors(spec: ModelSpec, files: Path | str) -> tuple[Any, Any]:
    options = {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(files, **options)
        image_processor = _image_processor_class().from_pretrained(files, **options)
    except Exception as e:  # damaged files fail in many ways
        raise ModelError(f"cannot load the tokenizer or image processor of {files}: {e}") from e
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        template = asset(TINY) / "chat_template.jinja"
        tokenizer.chat_template = template.read_text("utf-8")
    return tokenizer, image_processor


def _image_processor_class() -> Any:
    """The class that transformers would choose; its PIL version where torchvision is missing."""
    if is_torchvision_available():
        from transformers import AutoImageProcessor

        return AutoImageProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


def _limits(image_processor: Any) -> PixelLimits:
    size = dict(image_processor.size)
    return PixelLimits(
        min_pixels=int(size["shortest_edge"]),
        max_pixels=int(size["longest_edge"]),
        factor=int(image_processor.patch_size * image_processor.merge_size),
    )


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
