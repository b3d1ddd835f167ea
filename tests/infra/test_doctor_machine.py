"""What the doctor sees of a machine: its libraries, folders, ports, devices and certificates."""

from __future__ import annotations

import datetime
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.doctor import devices, machine, packages, ports, proofs
from infra.doctor.findings import Finding, is_well, lines, ok, warning, wrong
from infra.doctor.packages import Requirement
from pool.engines.base import Probe
from pool.engines.device import Device, Gpus
from registry_sync.local_plans import BYTES_MAX_DEFAULT
from tests.support.certificates import Authority
from tests.support.processes import private_text

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def states(findings: list[Finding]) -> list[str]:
    return [one.state for one in findings]


# findings


def test_only_what_is_wrong_is_not_well() -> None:
    assert is_well([ok("a", "b"), warning("a", "b", "c")])
    assert not is_well([wrong("a", "b", "c")])


def test_nothing_invisible_is_shown() -> None:
    assert "\x1b" not in lines([wrong("bucket", "\x1b[2J", "\x1b[2J")])[0]


# python and libraries


def test_this_environment_is_as_needed() -> None:
    assert states(packages.examine()) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 10), "wrong"), ((3, 11), "ok"), ((3, 14), "ok"), ((3, 15), "wrong"), ((4, 0), "wrong")],
)
def test_python_is_judged_by_our_own_metadata(version: tuple[int, int], state: str) -> None:
    for asked in (">=3.11,<3.15", "<3.15,>=3.11"):
        assert packages.python(version, asked).state == state


@pytest.mark.parametrize(
    ("installed", "extra", "state"),
    [
        ("1.3.1", "", "ok"),
        ("1.10.0", "", "ok"),
        ("1.2.9", "", "wrong"),
        ("1.3.1+cpu", "gpu", "ok"),
        ("1.2", "gpu", "wrong"),
        (None, "", "wrong"),
        (None, "gpu", "ok"),  # nobody needs an extra
        ("1.2", "dev", "ok"),  # nor what we develop with
    ],
)
def test_library_is_judged_by_its_lowest_release(
    installed: str | None, extra: str, state: str
) -> None:
    (found,) = packages.libraries([Requirement("lib", "1.3.1", extra)], lambda _: installed)
    assert found.state == state
    assert found.do == ("pip install 'lib>=1.3.1'" if state == "wrong" else "")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("starlette>=1.3.1", Requirement("starlette", "1.3.1")),
        ("starlette (>=1.3.1)", Requirement("starlette", "1.3.1")),
        ("uvicorn[standard]>=0.38; extra == 'dev'", Requirement("uvicorn", "0.38", "dev")),
        (
            'kserve>=0.16; python_version < "3.14" and extra == "dev"',
            Requirement("kserve", "0.16", "dev"),
        ),
        ("types-PyYAML", Requirement("types-PyYAML", "")),
        ("torch==2.13.0", Requirement("torch", "")),
        ("tidepool[demo]; extra == 'dev'", None),
    ],
)
def test_every_form_of_a_requirement_is_read(text: str, read: Requirement | None) -> None:
    assert packages.read_requirement(text) == read


# folder, memory, files


def test_folder_that_will_be_made_is_good_and_is_not_made(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"
    assert "wrong" not in states(machine.folder(data))
    assert not data.parent.exists()


def test_file_or_read_only_place_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert states(machine.folder(tmp_path / "file")) == ["wrong"]
    (found,) = machine.folder(Path("/proc/tidepool"))  # where not even root may write
    assert found.state == "wrong"
    assert "/proc cannot be written" in found.found


def test_folder_that_others_may_write_is_wrong(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (found,) = [one for one in machine.folder(tmp_path) if one.state == "wrong"]
    assert "others may write" in found.found
    assert found.do == f"chmod 700 {tmp_path}"


@pytest.mark.parametrize(
    ("free_bytes", "state"),
    [(0, "wrong"), (machine.FREE_BYTES_MIN, "warning"), (BYTES_MAX_DEFAULT, "ok")],
)
def test_room_is_judged(free_bytes: int, state: str, tmp_path: Path) -> None:
    assert machine._free(free_bytes, tmp_path).state == state


def test_file_system_is_the_innermost_mount(tmp_path: Path) -> None:
    inner = tmp_path / "with space"
    shown = str(inner).replace(" ", "\\040")
    mounts = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"30 22 0:50 / {shown} rw - nfs4 host:/x rw\n"
        f"31 22 0:51 / {tmp_path}/with rw - tmpfs none rw\nbroken line\n"
    )
    assert machine.file_system(inner / "deep", mounts) == "nfs4"
    assert machine.file_system(tmp_path, mounts) == "ext4"
    assert machine.file_system(tmp_path, "") == ""
    assert machine.file_system(Path("/proc"), machine.MOUNTS.read_text()) == "proc"


@pytest.mark.parametrize(
    ("soft", "state"),
    [(256, "wrong"), (1024, "warning"), (8192, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_open_files_are_judged(soft: int, state: str) -> None:
    assert machine.open_files(soft, 65536).state == state


def test_memory_can_be_shared_here() -> None:
    assert machine.shared_memory().state == "ok"


# ports


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_that_is_taken_names_who_has_it(listener: int) -> None:
    found = ports.examine("127.0.0.1", listener, "--port", 0)
    assert found.state == "wrong"
    assert f"(pid {os.getpid()})" in found.found
    assert found.do.endswith("with --port")


def test_port_of_the_running_stack_is_its_own(listener: int) -> None:
    for pid in (os.getpid(), os.getppid()):  # its supervisor, or a process below it
        assert ports.examine("127.0.0.1", listener, "--port", pid).state == "ok"


def test_free_port_and_foreign_host_are_told(listener: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert ports.examine("127.0.0.1", port, "--port", 0).state == "ok"
    assert ports.examine("203.0.113.1", port, "--port", 0).state == "wrong"


# devices

GPU = Device("cuda:0", "sm_89", "NVIDIA L4", 580, 24 << 30)
NO_DRIVER = Gpus(reason="no NVIDIA driver: NVML Shared Library Not Found")
NO_LIBRARY = Gpus(reason="nvidia-ml-py is not installed: pip install 'tidepool[gpu]'")


@pytest.mark.parametrize(
    ("wanted", "gpus", "bus", "told"),
    [
        ("auto", NO_DRIVER, 0, ["ok"]),
        ("auto", NO_DRIVER, 1, ["wrong"]),
        ("cuda:0", NO_DRIVER, 0, ["wrong"]),
        ("auto", Gpus((GPU,)), 1, ["ok"]),
        ("cuda:0", Gpus((GPU,)), 1, ["ok"]),
        ("cuda:1", Gpus((GPU,)), 1, ["ok", "wrong"]),
        ("auto", Gpus((GPU,)), 2, ["ok", "warning"]),
    ],
)
def test_gpus_are_judged_by_what_is_wanted_and_plugged_in(
    wanted: str, gpus: Gpus, bus: int, told: list[str]
) -> None:
    assert states(devices.gpus(wanted, gpus, bus)) == told


def test_way_out_is_the_library_or_the_driver() -> None:
    assert devices.gpus("cuda:0", NO_LIBRARY, 1)[0].do == "pip install 'tidepool[gpu]'"
    assert "NVIDIA's driver" in devices.gpus("cuda:0", NO_DRIVER, 1)[0].do
    assert devices.gpus("cuda:7", Gpus((GPU,)), 1)[-1].do == "choose among cpu, cuda:0"


def test_gpus_on_the_bus_are_counted(tmp_path: Path) -> None:
    for name, vendor, kind in [
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),  # the sound of a GPU
        ("c", "0x1234", "0x030000"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "d").mkdir()
    assert devices.on_bus(tmp_path) == 1


def probe(name: str, version: str, reason: str = "") -> Probe:
    return Probe(name, not reason and bool(version), version, "cuda:0", reason)


def test_tensorrt_is_judged_by_what_it_says() -> None:
    good, old, none = probe("tensorrt", "11.4"), probe("tensorrt", "9.0", "too old"), []
    assert states(devices.plan_engines([good, probe("torch", "2.13")])) == ["ok"]
    assert states(devices.plan_engines([old])) == ["warning"]
    assert "too old" in devices.plan_engines([old])[0].found
    assert states(devices.plan_engines([probe("tensorrt", ""), *none])) == ["warning"]


# what a node proves itself with


def test_certificates_are_judged_by_their_days(tmp_path: Path) -> None:
    folder = Authority.make().issue(tmp_path / "wire-tls", with_ca=True)  # for a day
    for now, state in [(NOW, "warning"), (NOW + 2 * DAY, "wrong"), (NOW - 2 * DAY, "wrong")]:
        found = proofs.examine(tmp_path, [folder / "tls.crt"], now)
        assert states(found) == ["ok", state, state, state]  # secret, tls.crt, ca.crt, the edge's
    assert proofs._dates(Path("x"), Authority.make().certificate, NOW - 13 * DAY).state == "wrong"


def test_certificate_with_time_left_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "SOON", datetime.timedelta(hours=1))
    folder = Authority.make().issue(tmp_path / "wire-tls")
    assert states(proofs.certificate(folder / "tls.crt", NOW)) == ["ok"]


def test_file_that_is_no_certificate_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("none")
    assert states(proofs.certificate(tmp_path / "tls.crt", NOW)) == ["wrong"]


def test_half_of_a_certificate_is_wrong(tmp_path: Path) -> None:
    folder = Authority.make().issue(tmp_path / "wire-tls")
    (folder / "tls.key").unlink()
    assert "wrong" in states(proofs.examine(tmp_path, [], NOW))


def test_fleet_secret_is_told_by_its_id_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDEPOOL_FLEET_SECRET", raising=False)
    assert "none" in proofs.secret(tmp_path).found
    private_text(tmp_path / "secrets", "ab" * 32)
    found = proofs.secret(tmp_path)
    assert (found.state, "ab" * 32 in found.found) == ("ok", False)
    monkeypatch.setenv("TIDEPOOL_FLEET_SECRET", "ab" * 32)
    again = proofs.secret(tmp_path)
    assert again.found.split(" ")[0] == found.found.split(" ")[0]
    monkeypatch.setenv("TIDEPOOL_FLEET_SECRET", "short")
    assert proofs.secret(tmp_path).state == "wrong"
