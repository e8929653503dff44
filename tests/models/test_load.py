"""Loading: names, folders as they come, shapes against published counts, precisions."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qvl_lab as ql
from qvl_lab.assets import asset
from qvl_lab.backends.fast.model.qwen3_vl import Qwen3VLModel
from qvl_lab.errors import ConfigError, ModelError, PrecisionError, UnknownNameError
from qvl_lab.models.load import load_model, parameter_count
from qvl_lab.models.memory import memory_limit, out_of_memory
from qvl_lab.models.shapes import SHAPES, build, random_config
from qvl_lab.session import Lab

#: Billions of parameters of the published checkpoints.
PUBLISHED = {
    "2b": 2.128,
    "4b": 4.438,
    "8b": 8.767,
    "32b": 33.4,
    "30b-a3b": 31.1,
    "235b-a22b": 235.7,
}
#: As the published checkpoints have it.
REAL_PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


@pytest.fixture(scope="module")
def saved(lab, tmp_path_factory) -> Path:
    """The embedded model as a folder of several safetensors shards with an index."""
    folder = tmp_path_factory.mktemp("saved")
    lab.loaded.model.save_pretrained(folder, max_shard_size="5MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(asset("tiny") / name, folder)
    shutil.copy(asset("tiny") / "preprocessor_config.json", folder)
    return folder


@pytest.fixture
def changed(saved, tmp_path) -> Callable[..., Path]:
    """A copy of the saved folder with files replaced; None removes a file."""

    def change(**contents: str | bytes | None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(saved, folder)
        for name, content in contents.items():
            path = folder / name
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return change


def weights(model: torch.nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


def in_one_file(folder: Path) -> dict[str, torch.Tensor]:
    """Take the shards out of a folder and return their tensors."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return tensors


# ---- names


def test_tiny_loads_without_a_network_in_about_a_second(monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", no_network)
    started = time.perf_counter()
    loaded = load_model(ql.ModelSpec(model="tiny", device="cpu"))
    assert time.perf_counter() - started < 5  # about 0.3 s on an idle machine
    assert 0 < loaded.load_s < 5
    assert not loaded.random_weights
    assert (loaded.spec.device, loaded.spec.precision) == ("cpu", "fp32")


def test_tiny_is_trained_and_small():
    """Its weights come from a file that a repository can hold."""
    file = asset("tiny") / "model.safetensors"
    assert file.stat().st_size <= 16e6
    tensors = load_file(file)
    loaded = ql.load("tiny", device="cpu", precision="fp32", seed=1).loaded
    assert 4e6 <= parameter_count(loaded.model) <= 8e6
    named = dict(loaded.model.named_parameters())
    assert set(tensors) == set(named)
    for name, tensor in tensors.items():
        assert torch.equal(named[name], tensor.float()), name
    assert not loaded.random_weights


def test_random_tiny_is_the_same_shape_with_other_weights(lab, trained):
    shapes = [
        {name: tuple(p.shape) for name, p in one.loaded.model.named_parameters()}
        for one in (lab, trained)
    ]
    assert shapes[0] == shapes[1]
    assert lab.loaded.random_weights
    assert not torch.equal(weights(lab.loaded.model), weights(trained.loaded.model))
    assert lab.loaded.limits == trained.loaded.limits


@pytest.mark.parametrize("shown", [True, False])
def test_tiny_loads_without_a_progress_bar_and_leaves_others_theirs(capfd, shown):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    switch[shown]()
    try:
        ql.load("tiny", device="cpu")
        assert logging.is_progress_bar_enabled() is shown
        assert capfd.readouterr() == ("", "")
    finally:
        switch[before]()


@pytest.mark.parametrize("size", SHAPES)
def test_random_shapes_have_the_published_number_of_parameters(size):
    model = build(random_config(f"random:{size}"), torch.bfloat16, "meta", None, 0)
    assert parameter_count(model) / 1e9 == pytest.approx(PUBLISHED[size], rel=0.01)


def test_every_shape_has_a_published_count_to_agree_with():
    assert set(PUBLISHED) == set(SHAPES)


def test_equal_seeds_give_equal_weights_and_others_do_not(lab):
    again, other = (ql.load("random:tiny", device="cpu", seed=seed).loaded.model for seed in (0, 1))
    reference = weights(lab.loaded.model)
    assert torch.equal(weights(again), reference)
    assert not torch.equal(weights(other), reference)


@pytest.mark.parametrize("model", ["random:tiny", "tiny"])
def test_loading_leaves_the_random_states_of_the_notebook_as_they_were(model):
    torch.manual_seed(7)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    ql.load(model, device="cpu", seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.gpu
def test_loading_leaves_the_random_state_of_the_gpu_as_it_was():
    before = torch.cuda.get_rng_state()
    ql.load("random:tiny", device="cuda", seed=3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "hint"), [("tinny", "tiny"), ("random:9b", "random:8b"), ("Tiny", "tiny")]
)
def test_unknown_names_get_the_nearest_known_one(name, hint):
    with pytest.raises(UnknownNameError, match=f"Did you mean {hint!r}") as caught:
        ql.load(name)
    assert caught.value.nearest == hint


@pytest.mark.parametrize("path", ["/no/such/folder", "./nope", "a/b/c"])
def test_a_missing_folder_is_said_to_be_missing(path):
    with pytest.raises(ModelError, match=f"{path} does not exist"):
        ql.load(path)


def test_a_hub_id_that_cannot_be_reached_says_what_to_give_instead():
    with pytest.raises(ModelError, match=r"cannot load nobody/nothing(.|\n)*Give a folder"):
        ql.load("nobody/nothing")


def test_code_that_comes_with_a_model_is_off_by_default(changed, tmp_path):
    assert ql.ModelSpec().trust_remote_code is False
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "code.Foreign"}}
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Foreign: pass\n"
    folder = changed(**{"config.json": json.dumps(config), "code.py": code})
    with pytest.raises(ModelError, match="cannot load"):
        ql.load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_bytes_of_a_token_are_those_of_a_real_cache(precision):
    loaded = ql.load("random:tiny", device="cpu", precision=precision).loaded
    cache = Qwen3VLModel(loaded.model, to_device=None).allocate_cache(3, 16)
    assert loaded.kv_bytes_per_token == (cache.keys.nbytes + cache.values.nbytes) / 48


@pytest.mark.parametrize(("precision", "words"), [("fp8", 1), ("fp32", 0)])
def test_fp8_on_a_cpu_is_said_to_be_emulated(caplog, precision, words):
    ql.load("random:tiny", device="cpu", precision=precision)
    said = "fp8 on a CPU is emulated: answers are those of fp8, speed and memory are not"
    assert caplog.text.count(said) == words


# ---- folders


def test_a_folder_of_shards_answers_like_the_model_it_was_saved_from(lab, saved, mixed):
    assert len(list(saved.glob("*.safetensors"))) > 2
    assert (saved / "model.safetensors.index.json").exists()
    loaded = ql.load(str(saved), device="cpu", precision="fp32")
    options = {"resolution": 128, "max_new_tokens": 8, "min_new_tokens": 8}
    expected = lab.generate_batch(mixed[:6], **options).texts
    assert loaded.generate_batch(mixed[:6], **options).texts == expected
    assert len(set(expected)) > 3
    assert not loaded.loaded.random_weights


def test_the_published_processor_files_load_without_torchvision(lab, changed, mixed):
    folder = changed(
        **{
            "preprocessor_config.json": json.dumps(REAL_PREPROCESSOR),
            "processor_config.json": json.dumps({"processor_class": "Qwen3VLProcessor"}),
            "video_preprocessor_config.json": json.dumps(
                {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16}
            ),
        }
    )
    loaded = ql.load(str(folder), device="cpu")
    limits = loaded.loaded.limits
    assert (limits.min_pixels, limits.max_pixels, limits.factor) == (65536, 16777216, 32)
    options = {"resolution": 128, "max_new_tokens": 4, "min_new_tokens": 4}
    expected = lab.generate_batch(mixed[:2], **options).texts
    assert loaded.generate_batch(mixed[:2], **options).texts == expected


def test_pickled_weights_are_never_read(changed, tmp_path):
    folder = changed()
    tensors = in_one_file(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        ql.load(str(folder))


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config.json"):
        ql.load(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 1000, 2_000_000])
def test_a_cut_off_shard_is_a_model_error(changed, kept):
    folder = changed()
    shard = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ModelError, match="cannot load"):
        ql.load(str(folder))


def test_a_missing_shard_is_named(changed):
    folder = changed()
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        ql.load(str(folder))


def test_missing_weights_are_refused_rather_than_made_up(changed):
    folder = changed()
    tensors = in_one_file(folder)
    lost = "model.language_model.layers.3.mlp.up_proj.weight"
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 of the model's weights, such as {lost}"):
        ql.load(str(folder))


def test_a_model_of_another_kind_is_named(changed):
    folder = changed(**{"config.json": json.dumps({"model_type": "llama"})})
    with pytest.raises(ModelError, match="'llama' model; qvl_lab runs Qwen vision-language"):
        ql.load(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "cannot load"),
        ("config.json", "{}", "cannot load"),
        ("tokenizer.json", None, "tokenizer or image processor"),
        ("tokenizer.json", "{}", "tokenizer or image processor"),
        ("preprocessor_config.json", None, "tokenizer or image processor"),
    ],
)
def test_damaged_or_missing_files_are_model_errors(changed, name, content, words):
    with pytest.raises(ModelError, match=words):
        ql.load(str(changed(**{name: content})))


# ---- device and precision


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_asking_for_cuda_where_there_is_none_is_an_error(device):
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        ql.load("tiny", device=device)


def test_unknown_devices_and_precisions_list_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"unknown device 'tpu'.*cuda"):
        ql.load("tiny", device="tpu")
    with pytest.raises(UnknownNameError, match=r"unknown precision 'fp4'.*int8"):
        ql.load("tiny", precision="fp4")


def test_an_attention_that_is_not_installed_is_a_model_error():
    with pytest.raises(ModelError, match="cannot build random:tiny"):
        ql.load("random:tiny", device="cpu", attn_implementation="nonsense")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision_is_the_dtype_of_all_weights(precision, dtype):
    model = ql.load("tiny", device="cpu", precision=precision).loaded.model
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_int8_quantises_the_language_model_alone_and_stays_close_to_fp32(lab):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8Tensor

    quantised = ql.load("random:tiny", device="cpu", precision="int8")
    inner = quantised.loaded.model.model
    assert isinstance(inner.language_model.layers[0].mlp.up_proj.weight, Int8Tensor)
    assert not isinstance(inner.visual.blocks[0].mlp.linear_fc1.weight, Int8Tensor)
    exact, close = (scores(one) for one in (lab, quantised))
    assert close.isfinite().all()
    difference = (close - exact).norm() / exact.norm()
    assert 0 < difference < 0.1


def scores(lab: Lab) -> torch.Tensor:
    """The model's scores after a few words."""
    ids = lab.loaded.tokenizer("What is the total on this receipt?", return_tensors="pt")
    with torch.inference_mode():
        return lab.loaded.model(**ids).logits.float()


def test_int8_without_torchao_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(PrecisionError, match=r"pip install 'qvl-lab\[int8\]'"):
        ql.load("tiny", precision="int8")


# ---- memory


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (SystemError("<function f> returned NULL without setting an exception"), True),
        (SystemError("bad argument to internal function"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_failures(error, is_it):
    assert out_of_memory(error) is is_it


def test_the_memory_limit_holds_inside_the_block_only():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit("cpu", 64.0):
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 64 * 2**30
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_auto_means_cuda_and_bf16_where_the_gpu_has_it():
    loaded = ql.load("tiny").loaded
    assert loaded.spec.device == "cuda"
    has_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    assert loaded.spec.precision == ("bf16" if has_bf16 else "fp16")
    assert next(loaded.model.parameters()).is_cuda
