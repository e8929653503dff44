"""The GPU table, device names, and what a number depends on."""

from __future__ import annotations

import re
import subprocess
from types import SimpleNamespace

import pytest

from qvl_lab import __version__, hardware
from qvl_lab.hardware import find_gpu, fingerprint, gpu_name, gpu_table


def fake_nvml(*names):
    return SimpleNamespace(
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: names[index],
        nvmlDeviceGetName=lambda handle: handle,
        nvmlDeviceGetUUID=lambda handle: f"GPU of {handle!r}",
        nvmlSystemGetDriverVersion=lambda: b"550.54",
    )


@pytest.fixture(autouse=True)
def forget_the_host():
    hardware._host.cache_clear()
    yield
    hardware._host.cache_clear()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the package's place in an empty folder, with the commit not yet looked up."""
    (tmp_path / "qvl_lab").mkdir()
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "qvl_lab" / "hardware.py"))
    monkeypatch.delenv("QVL_LAB_COMMIT", raising=False)
    hardware.commit.cache_clear()
    yield tmp_path
    hardware.commit.cache_clear()


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A800-SXM4-80GB", "A800 80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("nvidia l4", "L4"),
    ],
)
def test_a_driver_name_finds_its_row(device_name, name):
    assert find_gpu(device_name).name == name


@pytest.mark.parametrize(
    "device_name",
    [
        "Tesla T4",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "NVIDIA A100",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "AMD Instinct MI300X",
        "",
        None,
    ],
)
def test_an_unknown_gpu_is_not_guessed(device_name):
    assert find_gpu(device_name) is None


def test_a_name_that_fits_two_rows_is_not_guessed():
    assert find_gpu("A100 40GB or 80GB") is None


@pytest.mark.parametrize("gpu", gpu_table().values(), ids=gpu_table())
def test_rates_of_the_table_are_plausible_and_sourced(gpu):
    assert 16 <= gpu.memory_gb <= 300
    assert 200 <= gpu.bandwidth_gb_s <= 20_000
    assert 50 <= gpu.bf16_tflops <= 5_000  # sparse figures would be twice the data sheet's
    most = 4 if "RTX" in gpu.name else 2.5  # GeForce sums products of bf16 in fp32 at half the rate
    assert gpu.int8_tops is None or 1.5 <= gpu.int8_tops / gpu.bf16_tflops <= most
    assert gpu.source


def test_every_gpu_is_found_by_its_own_name():
    assert {name: find_gpu(name) for name in gpu_table()} == gpu_table()


def test_gpu_name_is_text_and_none_beyond_the_last(monkeypatch):
    monkeypatch.setattr(hardware, "nvml", lambda: fake_nvml(b"NVIDIA L4", "NVIDIA H200"))
    assert [gpu_name(i) for i in range(3)] == ["NVIDIA L4", "NVIDIA H200", None]


def test_fingerprint_with_a_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "nvml", lambda: fake_nvml(b"NVIDIA L4", b"NVIDIA L4"))
    found = fingerprint()
    assert (found["gpu"], found["gpu_count"], found["driver"]) == ("NVIDIA L4", 2, "550.54")


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("auto", "NVIDIA A10G"),
        ("cuda", "NVIDIA A10G"),
        ("cuda:0", "NVIDIA A10G"),
        ("cuda:1", "NVIDIA H100"),
        ("cuda:2", None),
    ],
)
def test_fingerprint_names_the_gpu_of_the_device(monkeypatch, device, gpu):
    monkeypatch.setattr(hardware, "nvml", lambda: fake_nvml("NVIDIA A10G", "NVIDIA H100"))
    hardware._host.cache_clear()
    assert fingerprint(device)["gpu"] == gpu
    same = gpu == "NVIDIA A10G"
    assert (fingerprint(device)["host"] == fingerprint()["host"]) == same
    hardware._host.cache_clear()


def test_fingerprint_without_a_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "nvml", lambda: None)
    found = fingerprint()
    assert (found["gpu"], found["gpu_count"], found["driver"]) == (None, 0, None)
    assert found["qvl_lab"] == __version__
    assert list(found) == (
        "gpu gpu_count driver cpu cpu_count platform python torch torchvision transformers "
        "qvl_lab commit host".split()
    )


def test_host_tells_machines_and_gpus_apart_without_naming_them(monkeypatch):
    hosts = []
    for node, lib in (("a", None), ("b", None), ("a", fake_nvml(b"NVIDIA L4")), ("a", None)):
        monkeypatch.setattr(hardware.platform, "node", lambda node=node: node)
        monkeypatch.setattr(hardware, "nvml", lambda lib=lib: lib)
        hardware._host.cache_clear()
        hosts.append(hardware._host(0))
    assert hosts[0] == hosts[3]
    assert len(set(hosts)) == 3
    assert all(re.fullmatch("[0-9a-f]{8}", host) for host in hosts)


def test_a_package_that_is_not_installed_has_no_version():
    assert hardware._version("no-such-package-qvl") is None
    assert hardware._version("pandas")[0].isdigit()


def test_commit_names_the_head_and_marks_changes(checkout):
    source = checkout / "qvl_lab" / "a.py"
    source.write_text("1")
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    head = git(checkout, "rev-parse", "HEAD")[:12]
    assert hardware.commit() == head
    (checkout / "README.md").write_text("outside the package")
    hardware.commit.cache_clear()
    assert hardware.commit() == head
    source.write_text("2")
    hardware.commit.cache_clear()
    assert re.fullmatch(f"{head}\\+[0-9a-f]{{6}}", hardware.commit())


def test_commit_marks_untracked_modules_by_their_content(checkout):
    package = checkout / "qvl_lab"
    (package / "a.py").write_text("1")
    (checkout / ".gitignore").write_text("*.pyc\n")
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    seen = [hardware.commit()]
    for name, text in (("new.py", "1"), ("new.py", "2"), ("b.py", "2"), ("c.pyc", "ignored")):
        (package / name).write_text(text)
        hardware.commit.cache_clear()
        seen.append(hardware.commit())
    head = git(checkout, "rev-parse", "HEAD")[:12]
    assert seen[0] == head
    assert all(re.fullmatch(f"{head}\\+[0-9a-f]{{6}}", commit) for commit in seen[1:])
    assert len(set(seen)) == 4
    assert seen[3] == seen[4]


def test_commit_of_a_copy_comes_from_the_environment(checkout, monkeypatch):
    assert hardware.commit() is None
    hardware.commit.cache_clear()
    monkeypatch.setenv("QVL_LAB_COMMIT", "abc123")
    assert hardware.commit() == "abc123"


def test_commit_without_git_is_unknown(checkout, monkeypatch):
    (checkout / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert hardware.commit() is None
    hardware.commit.cache_clear()
    monkeypatch.setenv("QVL_LAB_COMMIT", "abc123")
    assert hardware.commit() == "abc123"
