"""Devices as plans name them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pool.engines.device import Device, NoSuchDevice, cpu, cpu_class, find, gpus, label_of
from registry_sync.names import check_name

# Of an Intel Xeon of 2023, shortened; what is no instruction stands at the end.
LISTED = """
fpu mmx sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c lahf_lm abm
bmi1 avx2 bmi2 avx512f avx512dq avx512cd avx512bw avx512vl amx_tile
hypervisor arch_capabilities ibrs md_clear
"""
FLAGS = frozenset(LISTED.split())


def test_a_cpu_class_says_the_level_and_is_a_name() -> None:
    name = cpu_class("x86_64", FLAGS)
    assert name.startswith("cpu_x86-64-v4_")
    assert check_name("device class", name) == name
    assert cpu_class("x86_64", FLAGS - {"avx512f"}).startswith("cpu_x86-64-v3_")
    assert cpu_class("x86_64", FLAGS - {"fma"}).startswith("cpu_x86-64-v2_")
    assert cpu_class("x86_64", ["sse2"]).startswith("cpu_x86-64_")
    assert cpu_class("aarch64", ["sve"]).startswith("cpu_aarch64_")


@pytest.mark.parametrize("flag", sorted({"avx512f", "amx_tile", "fma", "bmi2", "sse4_2"}))
def test_a_cpu_that_lacks_an_instruction_is_of_another_class(flag: str) -> None:
    assert cpu_class("x86_64", FLAGS - {flag}) != cpu_class("x86_64", FLAGS)


def test_what_is_no_instruction_makes_no_other_class() -> None:
    fewer = FLAGS - {"hypervisor", "arch_capabilities", "ibrs", "md_clear"}
    assert cpu_class("x86_64", fewer) == cpu_class("x86_64", FLAGS)


def test_the_cpu_is_always_there() -> None:
    assert find("cpu") == cpu()
    assert cpu().device_class.startswith("cpu_")


def test_a_device_that_is_not_there_is_refused_and_says_what_is() -> None:
    with pytest.raises(NoSuchDevice, match=r'no device "cuda:9999" here.*; there is: cpu'):
        find("cuda:9999")


def test_time_is_counted_by_the_name_of_a_gpu_and_of_all_cpus_together() -> None:
    gpu, nameless = Device("cuda:1", "sm_89", "NVIDIA L4"), Device("cuda:1", "sm_89", " ")
    assert [label_of(one) for one in (gpu, nameless, cpu())] == ["nvidia-l4", "sm_89", "cpu"]


def test_without_a_name_it_is_the_first_gpu_else_the_cpu() -> None:
    found = gpus()
    assert find() == (found.devices[0] if found.devices else cpu())
    assert bool(found.devices) != bool(found.reason)


def test_asking_for_devices_loads_no_framework() -> None:
    code = (
        "import sys, pool.engines.device as d; d.find(); d.gpus()\n"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
