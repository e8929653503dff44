"""Settings: what is accepted, how a grid unfolds, and TOML there and back."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from qvl_lab.backends.processor import settings_of
from qvl_lab.bench.planning import spec_from
from qvl_lab.config import (
    FIELDS,
    RENAMED,
    CacheSettings,
    Config,
    Fast,
    ImagePolicy,
    ModelSpec,
    SamplingParams,
    SweepSpec,
    Transformers,
    digest,
    flat_fields,
)
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.workloads.items import Item, Workload


def write(folder, text):
    path = folder / "sweep.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(autouse=True)
def quick_sweeps() -> None:
    """Here the defaults are those of the package."""


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (ModelSpec, {"precision": "bf61"}, "unknown precision 'bf61'. Did you mean 'bf16'"),
        (ModelSpec, {"trust_remote_code": "false"}, "trust_remote_code 'false'"),
        (ImagePolicy, {"resolution": "nativ"}, "'native', 'by_task' or a side from 32 to 16384"),
        (ImagePolicy, {"resolution": 31}, "not 31"),
        (ImagePolicy, {"resolution": 16385}, "not 16385"),
        (ImagePolicy, {"resolution": 512.0}, r"not 512\.0"),
        (ImagePolicy, {"resolution": True}, "not True"),
        (ImagePolicy, {"task_resolutions": {"ocr": "by_task"}}, "'native' or a side .*'by_task'"),
        (ImagePolicy, {"task_resolutions": 5}, "task_resolutions must map tasks .*not 5"),
        (ImagePolicy, {"max_image_pixels": 0}, "max_image_pixels must be .* from 1 to 178956970"),
        (ImagePolicy, {"max_image_pixels": 178_956_971}, "not 178956971"),
        (ImagePolicy, {"max_image_bytes": 2**31 + 1}, "max_image_bytes"),
        (Transformers, {"cache_implementation": "statik"}, "Did you mean 'static'"),
        (
            Fast,
            {"batch_size": 0},
            "a whole number from 1 to 4096 or 'auto', not 0",
        ),
        (Transformers, {"batch_size": 4097}, "not 4097"),
        (Transformers, {"batch_size": True}, "not True"),
        (Fast, {"batch_size": "all"}, "not 'all'"),
        (Transformers, {"batch_size": 2.0}, r"not 2\.0"),
        (SamplingParams, {"max_new_tokens": 32769}, "max_new_tokens"),
        (
            SamplingParams,
            {"max_new_tokens": 8, "min_new_tokens": 9},
            "min_new.* 0 to 8, not 9",
        ),
        (Transformers, {"memory_limit_gib": 0}, "memory_limit_gib must be a number above 0, not 0"),
        (Transformers, {"memory_limit_gib": float("nan")}, "not nan"),
        (Transformers, {"memory_limit_gib": "4"}, "not '4'"),
    ],
)
def test_settings_out_of_bounds_are_refused(part, settings, message):
    with pytest.raises(ConfigError, match=message):
        part(**settings)


@pytest.mark.parametrize(
    ("given", "kept"), [("native", "native"), ("by_task", "by_task"), (32, 32), ("512", 512)]
)
def test_resolution_is_a_word_or_a_number(given, kept):
    assert ImagePolicy(resolution=given).resolution == kept


def test_bounds_are_inclusive():
    sampling = SamplingParams(max_new_tokens=32768, min_new_tokens=32768)
    spec = Transformers(batch_size=4096, sampling=sampling)
    assert (spec.batch_size, spec.sampling.min_new_tokens) == (4096, 32768)
    assert ImagePolicy(resolution=16384, max_image_pixels=178_956_970).resolution == 16384


def test_specs_are_frozen_and_keyword_only():
    with pytest.raises(FrozenInstanceError):
        ModelSpec().model = "other"
    with pytest.raises(TypeError):
        Transformers(4)


def test_task_tables_are_not_shared():
    first, second = ImagePolicy(), ImagePolicy()
    first.task_resolutions["detection"] = 32
    assert second.task_resolutions == {
        "detection": 512,
        "description": 256,
        "fine_analysis": "native",
    }


def test_every_field_belongs_to_one_part():
    for backend in (Transformers, Fast):
        names = [name for part in (ModelSpec, ImagePolicy, backend) for name in flat_fields(part)]
        assert len(names) == len(set(names))
    assert set(FIELDS) == set(flat_fields(ModelSpec, ImagePolicy, Transformers, Fast))
    assert FIELDS["precision"] == "model"
    assert FIELDS["resolution"] == "images"
    assert FIELDS["batch_size"] == "engine"


def test_replace_finds_the_part():
    config = Config().replace(model="random:8b", resolution=256, batch_size=3)
    assert config.model == ModelSpec(model="random:8b")
    assert config.images == ImagePolicy(resolution=256)
    assert config.engine == Transformers(batch_size=3)
    assert Config() == Config(model=ModelSpec(), images=ImagePolicy(), engine=Transformers())


def test_replace_names_the_nearest_field():
    with pytest.raises(UnknownNameError, match=r"unknown field 'batchsize'.*'batch_size'"):
        Config().replace(batchsize=3)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_answers_with_the_new_one(old, tmp_path):
    message = f"{old} is now {RENAMED[old]}"
    file = write(tmp_path, f"[fixed]\n{old} = 1\n")
    for use in (
        lambda: Config().replace(**{old: 1}),
        lambda: SweepSpec(axes={old: [1]}),
        lambda: SweepSpec.from_toml(file),
        lambda: spec_from({"engine": "fast", old: 1}),
        lambda: settings_of({"engine": "fast", old: 1}),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


def test_replace_checks_values():
    with pytest.raises(ConfigError, match="batch_size"):
        Config().replace(batch_size=0)


def test_flat_and_back():
    config = Config().replace(precision="bf16", resolution=256, memory_limit_gib=2.5)
    flat = config.flat()
    assert set(flat) == set(flat_fields(ModelSpec, ImagePolicy, Transformers))
    assert (flat["precision"], flat["resolution"], flat["memory_limit_gib"]) == ("bf16", 256, 2.5)
    assert Config.from_flat(flat) == config
    assert Config.from_flat({"batch_size": 2}).engine == Transformers(batch_size=2)


def test_grid_is_the_product_model_by_model():
    spec = SweepSpec(
        axes={"batch_size": [1, 2], "resolution": [256], "precision": ["fp32", "bf16"]}
    )
    grid = [(c.model.precision, c.engine.batch_size) for c in spec.configurations()]
    assert grid == [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
    assert {c.images.resolution for c in spec.configurations()} == {256}


def test_grid_holds_each_setting_once():
    spec = SweepSpec(axes={"batch_size": [1, 1, 2], "resolution": [256, "256"]})
    assert [c.engine.batch_size for c in spec.configurations()] == [1, 2]


def test_grid_without_axes_is_the_base():
    base = Config().replace(batch_size=5)
    assert SweepSpec(axes={}, base=base).configurations() == [base]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": {"batchsize": [1]}}, "unknown field 'batchsize'.*'batch_size'"),
        ({"axes": {"batch_size": []}}, r"axis batch_size needs a list of values, not \[\]"),
        ({"axes": {"precision": "bf16"}}, "axis precision needs a list"),
        ({"axes": {"batch_size": 4}}, "needs a list of values, not 4"),
        ({"axes": {"batch_size": [1, 0]}}, "batch_size must be"),
        ({"axes": {}, "repeats": 0}, "repeats must be a whole number from 1 to 1000"),
        ({"axes": {}, "warmup": -1}, "warmup"),
        ({"axes": {}, "items": 0}, "items"),
        ({"axes": {}, "batches": 0}, "batches"),
        ({"axes": {}, "timeout_s": 0}, "timeout_s must be a number above 0"),
        ({"axes": {}, "timeout_s": "60"}, "timeout_s"),
        ({"axes": {}, "isolation": "proces"}, "unknown isolation 'proces'.*'process'"),
    ],
)
def test_sweeps_are_checked_before_they_start(settings, message):
    with pytest.raises(ConfigError, match=message):
        SweepSpec(**settings)


@pytest.mark.parametrize(
    "spec",
    [
        SweepSpec(axes={"batch_size": [1, 2]}),
        SweepSpec(
            axes={"precision": ["fp32", "bf16"], "resolution": ["native", 256]},
            base=Config().replace(
                model="图像模型", task_resolutions={"检测": 512}, memory_limit_gib=1.5
            ),
            workload="my set.csv",
            question='Say "hello"\nor 你好',
            items=5,
            batches=2,
            repeats=7,
            warmup=0,
            seed=3,
            timeout_s=9.5,
            isolation="none",
        ),
    ],
    ids=["defaults", "everything"],
)
def test_toml_there_and_back(spec, tmp_path):
    assert SweepSpec.from_toml(write(tmp_path, spec.to_toml())) == spec


def test_toml_leaves_defaults_out():
    assert (
        SweepSpec(axes={"batch_size": [1]}).to_toml().split()
        == "[axes] batch_size = [ 1, ]".split()
    )


def test_toml_has_no_word_for_none():
    spec = SweepSpec(axes={"cache_implementation": [None, "static"]})
    with pytest.raises(ConfigError, match="axis cache_implementation holds None"):
        spec.to_toml()


def test_toml_has_no_word_for_a_function():
    spec = SweepSpec(axes={}, metrics={"invoice": lambda answer, expected: 1.0})
    with pytest.raises(ConfigError, match="metric of task 'invoice' is a function"):
        spec.to_toml()


def test_toml_tables_are_read(tmp_path):
    text = '[sweep]\nitems = 4\n[axes]\nbatch_size = [1, 8]\n[fixed]\nprecision = "fp16"\n'
    spec = SweepSpec.from_toml(write(tmp_path, text))
    assert spec.items == 4
    assert [c.engine.batch_size for c in spec.configurations()] == [1, 8]
    assert {c.model.precision for c in spec.configurations()} == {"fp16"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sweeps]\n", "unknown table 'sweeps'.*'sweep'.*Allowed: axes, fixed, sweep"),
        ("[sweep]\nrepeat = 3\n", "unknown sweep option 'repeat'.*'repeats'"),
        ("[sweep]\naxes = 3\n", "unknown sweep option 'axes'"),
        ("[fixed]\nprecison = 'bf16'\n", "unknown field 'precison'.*'precision'"),
        ("[axes]\nbatch = [1]\n", "unknown field 'batch'.*'batch_size'"),
        ("axes = 5\n", r"axes in .*sweep\.toml must be a table, \[axes\]"),
        ("[[fixed]]\nbatch_size = 1\n", r"must be a table, \[fixed\]"),
        ("[axes\n", "not valid TOML"),
    ],
)
def test_toml_mistakes_are_named(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        SweepSpec.from_toml(write(tmp_path, text))


def test_toml_must_exist_and_be_utf8(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        SweepSpec.from_toml(tmp_path / "none.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes("[sweep]\nquestion = 'é'\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        SweepSpec.from_toml(path)


def test_a_workload_of_its_own_has_no_place_in_toml():
    spec = SweepSpec(axes={}, workload=Workload("photos", (Item("a", b"png"),)))
    with pytest.raises(ConfigError, match=r"workload 'photos'.*folder, a CSV or a JSONL file"):
        spec.to_toml()


def test_digest_is_the_hash_of_sorted_compact_json():
    expected = hashlib.sha256('{"a":"é","b":[1,null]}'.encode()).hexdigest()[:16]
    assert digest({"b": [1, None], "a": "é"}) == expected


def test_digest_takes_names_that_are_not_utf8():
    assert digest("\udcff.png") != digest("\udcfe.png")


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_digest_is_the_same_in_every_process(hash_seed):
    code = "from qvl_lab.config import *; print(digest(Config().replace(batch_size=3).flat()))"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest(Config().replace(batch_size=3).flat())


@pytest.mark.parametrize("part", [SamplingParams, Transformers, Fast, CacheSettings])
def test_every_field_of_a_backend_is_described(part):
    described = re.findall(r"^    (\w+) : ", part.__doc__, re.MULTILINE)
    assert described == [f.name for f in fields(part)]


@pytest.mark.parametrize(
    ("engine", "settings", "message"),
    [
        ("stock", {"prefix_cache": True}, "prefix_cache is the fast engine's; add engine='fast'"),
        ("stock", {"encoder_cache_gib": 1.0}, "encoder_cache_gib is the fast engine's"),
        ("fast", {"cache_implementation": "static"}, "is the stock engine's; add engine='stock'"),
    ],
)
def test_a_setting_of_another_backend_is_refused_with_its_engine(engine, settings, message):
    with pytest.raises(ConfigError, match=message):
        Config().replace(engine=engine, **settings)
    with pytest.raises(ConfigError, match=message):
        SweepSpec(axes={name: [value] for name, value in settings.items()} | {"engine": [engine]})


def test_an_unknown_engine_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown engine 'stok'\. Did you mean 'stock'"):
        Config().replace(engine="stok")


def test_a_row_of_one_backend_holds_no_settings_of_the_other():
    stock, fast = Config().flat(), Config().replace(engine="fast").flat()
    assert set(flat_fields(CacheSettings)) | {"engine", "prefix_cache"} <= set(fast)
    assert set(stock) & (set(flat_fields(CacheSettings)) | {"prefix_cache", "packing"}) == set()
    assert set(stock) - set(fast) == {"cache_implementation"}


def test_another_engine_keeps_what_both_have():
    stock = Config().replace(batch_size=3, max_new_tokens=5, cache_implementation="static")
    fast = stock.replace(engine="fast", prefix_cache=True)
    assert fast.engine == Fast(
        batch_size=3, sampling=SamplingParams(max_new_tokens=5), prefix_cache=True
    )
    assert fast.replace(engine="stock").engine == Transformers(
        batch_size=3, sampling=SamplingParams(max_new_tokens=5)
    )


def test_a_grid_leaves_out_what_an_engine_does_not_have():
    spec = SweepSpec(axes={"prefix_cache": [True, False], "engine": ["stock", "fast"]})
    engines = [config.engine for config in spec.configurations()]
    assert engines == [Transformers(), Fast(prefix_cache=True), Fast(prefix_cache=False)]


def test_a_fixed_setting_of_one_engine_is_that_engines_where_engines_vary(tmp_path):
    settings = {"engine": ["stock", "fast"], "prefix_cache": True, "cache_implementation": "static"}
    spec = spec_from(settings)
    assert [config.engine for config in spec.configurations()] == [
        Transformers(cache_implementation="static"),
        Fast(prefix_cache=True),
    ]
    assert SweepSpec.from_toml(write(tmp_path, spec.to_toml())) == spec


def test_a_fast_base_survives_toml(tmp_path):
    spec = spec_from({"engine": "fast", "prefix_cache": True, "batch_size": [4, "auto"]})
    assert SweepSpec.from_toml(write(tmp_path, spec.to_toml())) == spec


def test_a_seed_among_the_options_of_a_call_is_the_samplings():
    engine, _ = settings_of({"seed": 7, "do_sample": True})
    assert engine.sampling == SamplingParams(seed=7, do_sample=True)


def test_auto_is_a_number_of_requests_for_each_backend():
    assert (Transformers().most_at_once, Fast().most_at_once) == (8, 96)
    assert Fast(batch_size=3).most_at_once == 3
