"""Loading: a folder or hub id, true shapes with random weights, or the embedded model.

Importing this module imports torch and transformers.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qvl_lab.assets import asset
from qvl_lab.config import ModelSpec
from qvl_lab.errors import ConfigError, ModelError, PrecisionError, UnknownNameError
from qvl_lab.models.architecture import Architecture
from qvl_lab.models.linear import quantize_fp8
from qvl_lab.workloads.resize import PixelLimits

for noisy in ("torchao", "torch.utils._pytree"):  # they warn when transformers imports them
    logging.getLogger(noisy).setLevel(logging.ERROR)

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.utils import is_torchvision_available  # noqa: E402
from transformers.utils.logging import (  # noqa: E402
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY = "tiny"
_TEXT = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936}
_VISION_SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_VISION_LARGE = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _shape(
    hidden: int, inter: int, layers: int, heads: int, vision: dict[str, Any], **more: Any
) -> dict[str, Any]:
    text = dict(
        _TEXT,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )
    return {"text": text, "vision": dict(vision, out_hidden_size=hidden)}


def _moe(inter: int) -> dict[str, Any]:
    return {
        "moe_intermediate_size": inter,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
    }


#: Shapes of the published checkpoints, read from derivatives' config files; the parameter counts
#: agree with the published ones (tests/models/test_load.py).
SHAPES: dict[str, dict[str, Any]] = {
    "2b": _shape(2048, 6144, 28, 16, _VISION_SMALL, tie_word_embeddings=True),
    "4b": _shape(2560, 9728, 36, 32, _VISION_SMALL, tie_word_embeddings=True),
    "8b": _shape(4096, 12288, 36, 32, _VISION_LARGE),
    "32b": _shape(5120, 25600, 64, 64, _VISION_LARGE),
    "30b-a3b": _shape(2048, 6144, 48, 32, _VISION_LARGE, **_moe(768)),
    "235b-a22b": _shape(4096, 12288, 94, 64, _VISION_LARGE, **_moe(1536)),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, with what turns images and text into its inputs.

    ``spec`` has ``device`` and ``precision`` resolved. ``random_weights`` means that answers
    carry no meaning. ``load_s`` is the wall time of loading, imports left out.
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
        """What the config says; a ConfigError for a family whose sizes are not known."""
        return Architecture.from_config(self.model.config.to_dict())


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
        model = _random_model(spec, _random_config(spec.model))
    else:
        files = files if spec.model == TINY else _location(spec.model)
        model = _pretrained(spec, files)
    model = _quantised(model, spec).eval()
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
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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
        _torchao()
    if precision == "fp8" and kind == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        raise PrecisionError(
            f"{torch.cuda.get_device_name()} has no 8-bit floats (compute capability 8.9); use "
            "precision='int8' or 'bf16'"
        )
    return replace(spec, device=device, precision=precision)


def parameter_count(model: Any) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def base_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype of activations; int8 and fp8 are of the language model's weights alone."""
    if spec.precision in ("int8", "fp8"):
        return torch.float32 if spec.device == "cpu" else torch.bfloat16
    return DTYPES[spec.precision]


def read_architecture(model: str) -> Architecture:
    """The sizes of a model, without its weights: ``"random:8b"``, ``"tiny"``, a folder, a hub id.

    Raises
    ------
    UnknownNameError, ModelError
        As :func:`load_model`.
    """
    if model.startswith("random:"):
        return Architecture.from_config(_random_config(model).to_dict())
    files = asset(TINY) if model == TINY else _location(model)
    try:
        return Architecture.from_config(AutoConfig.from_pretrained(files).to_dict())
    except (OSError, ValueError) as e:
        raise ModelError(f"cannot read the config of {model}: {e}") from e


def _random_config(name: str) -> Any:
    size = name.removeprefix("random:").lower()
    tiny = AutoConfig.from_pretrained(asset(TINY))
    if size == TINY:
        return tiny
    if size not in SHAPES:
        raise UnknownNameError("model", name, [f"random:{s}" for s in (TINY, *SHAPES)])
    shape = SHAPES[size]
    moe = "num_experts" in shape["text"]
    text = dict(
        shape["text"],
        max_position_embeddings=262144,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        pad_token_id=tiny.text_config.pad_token_id,
        eos_token_id=tiny.text_config.eos_token_id,
    )
    cls = Qwen3VLMoeConfig if moe else Qwen3VLConfig
    return cls(
        text_config=text,
        vision_config=dict(shape["vision"], num_heads=16, num_position_embeddings=2304),
        image_token_id=tiny.image_token_id,
        video_token_id=tiny.video_token_id,
        vision_start_token_id=tiny.vision_start_token_id,
        vision_end_token_id=tiny.vision_end_token_id,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )


def build(config: Any, dtype: torch.dtype, device: str, attention: str | None, seed: int) -> Any:
    """A model of ``config`` with seeded random weights, made on the device itself."""
    moe = "moe" in config.model_type
    cls = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    options = {"attn_implementation": attention} if attention else {}
    torch.manual_seed(seed)
    with torch.device(device):
        return cls._from_config(config, dtype=dtype, **options)


def _random_model(spec: ModelSpec, config: Any) -> Any:
    try:
        model = build(config, base_dtype(spec), spec.device, spec.attn_implementation, spec.seed)
    except (ValueError, ImportError) as e:
        raise ModelError(f"cannot build {spec.model}: {e}") from e
    special = {
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    }
    model.generation_config = GenerationConfig(
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        suppress_tokens=sorted(special),  # random weights would emit them, and they decode to ""
    )
    return model


def _location(model: str) -> Path | str:
    """A folder, or a hub id unchanged."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{path} holds no config.json, so it is no model folder")
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        if "/" in model:
            raise ModelError(f"model folder {model} does not exist")
        known = [TINY, *(f"random:{size}" for size in (TINY, *SHAPES))]
        raise UnknownNameError("model", model, [*known, "a folder", "owner/name on the hub"])
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
        with _quiet(spec.model == TINY):
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
        raise ModelError(
            f"cannot load {spec.model}: {e}\nGive a folder with config.json and *.safetensors, "
            "or a hub id that this machine can reach"
        ) from e


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """No progress bar for what takes no time."""
    change = wanted and is_progress_bar_enabled()
    if change:
        disable_progress_bar()
    try:
        yield
    finally:
        if change:
            enable_progress_bar()


def _quantised(model: Any, spec: ModelSpec) -> Any:
    if spec.precision not in ("int8", "fp8"):
        return model
    if "moe" in model.config.model_type:
        raise PrecisionError(
            f"{spec.precision} does not reach the experts of a mixture-of-experts model yet, which "
            "are most of it; use precision='bf16'"
        )
    if spec.precision == "fp8":
        quantize_fp8(model.model.language_model)
        return model
    quantization = _torchao()

    def in_language_model(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and ".language_model." in f".{name}"

    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=in_language_model)
    return model


def _torchao() -> Any:
    try:
        import torchao.quantization
    except ImportError as e:
        raise PrecisionError("precision 'int8' needs torchao: pip install 'qvl-lab[int8]'") from e
    return torchao.quantization


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
    """What transformers itself would choose; without torchvision its PIL twin, named directly."""
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


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on CUDA or on the CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text)
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in short; Python's own MemoryError says nothing."""
    return str(error).split("\n")[0] or type(error).__name__


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def memory_limit(device: str, gib: float | None) -> Iterator[None]:
    """Let this process take no more than ``gib`` while the block runs; None sets no limit.

    On CUDA torch's allocator refuses more. On a CPU the data segment is bounded (``RLIMIT_DATA``),
    which counts all that the process holds.
    """
    if gib is None:
        yield
    elif device.startswith("cuda"):
        given = torch.device(device).index
        index = torch.cuda.current_device() if given is None else given
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
    else:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def free(device: str) -> None:
    """Give back memory that nothing refers to any more."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
