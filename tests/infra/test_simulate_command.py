"""`tidepool simulate` as a user calls it: rows, JSON, pictures and refusals."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from infra import cli
from infra.stack import CannotStart

NAMES = [
    "tidepool",
    "fixed-10m",
    "fixed-20m",
    "fixed-60m",
    "hybrid-histogram",
    "kpa",
    "ray",
]
FIELDS = ["name", "cold_share", "waste_ratio", "attainment", "gpu_hours_ratio"]


def _simulate(*arguments: object) -> Result:
    return CliRunner().invoke(cli.make_app("simulate"), ["simulate", *map(str, arguments)])


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models over some hours: one every 15 minutes, one at random."""
    rng = np.random.default_rng(1)
    rows = [(900.0 * n, "timer") for n in range(20)]
    rows += [(float(t_s), "random") for t_s in rng.uniform(0, 18_000, 40)]
    path = tmp_path_factory.mktemp("trace") / "calls.csv"
    lines = [f"{t_s},{model},1.5" for t_s, model in sorted(rows)]
    path.write_text("\n".join(["t_s,model,exec_s", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def found(trace: Path) -> dict[str, object]:
    """The JSON of the trace."""
    result = _simulate("--trace", trace, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_json_has_a_row_per_policy_and_the_limit(found: dict[str, list[dict[str, object]]]) -> None:
    assert list(found) == ["policies", "limit"]
    assert [row["name"] for row in found["policies"]] == NAMES
    assert all(list(row) == FIELDS for row in found["policies"])
    assert list(found["limit"]) == FIELDS


def test_waste_is_over_that_of_ten_minutes(found: dict[str, list[dict[str, float]]]) -> None:
    rows = {row["name"]: row for row in found["policies"]}
    assert rows["fixed-10m"]["waste_ratio"] == 1
    assert rows["fixed-60m"]["waste_ratio"] > rows["fixed-20m"]["waste_ratio"] > 1


def test_every_gap_longer_than_the_keep_alive_is_cold(
    found: dict[str, list[dict[str, float]]],
) -> None:
    rows = {row["name"]: row for row in found["policies"]}
    assert rows["fixed-10m"]["cold_share"] >= 20 / 60
    assert rows["fixed-20m"]["cold_share"] < 10 / 60


def test_limit_meets_first_arrivals_cold_and_no_others(
    found: dict[str, dict[str, float]],
) -> None:
    assert found["limit"]["cold_share"] == pytest.approx(2 / 60, abs=1e-6)
    assert found["limit"]["waste_ratio"] < 0.1


def test_rows_are_as_asked_for_and_the_yardstick_is_run_all_the_same(trace: Path) -> None:
    result = _simulate("--trace", trace, "--json", "--policy", "ray", "--policy", "tidepool")
    rows = json.loads(result.stdout)["policies"]
    assert [row["name"] for row in rows] == ["ray", "tidepool"]
    assert all(row["waste_ratio"] is not None for row in rows)


def test_one_call_wastes_nothing_and_is_cold(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("t_s\n5\n")
    result = _simulate("--trace", tmp_path / "one.csv", "--json")
    for row in json.loads(result.stdout)["policies"]:
        assert (row["cold_share"], row["attainment"]) == (1, 0)


def test_faster_wake_makes_cold_calls_on_time(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("t_s\n5\n")
    result = _simulate("--trace", tmp_path / "one.csv", "--json", "--wake-s", 0.5)
    assert json.loads(result.stdout)["limit"]["attainment"] == 1


def test_people_get_a_table_and_progress_apart(trace: Path) -> None:
    result = _simulate("--trace", trace)
    assert result.stdout.splitlines()[0].split() == [
        "policy",
        "cold",
        "waste",
        "on",
        "time",
        "GPU-hours",
    ]
    assert "calls.csv: 60 calls, 2 models" in result.stderr
    assert "behind" in result.stdout.splitlines()[-1]


def test_pictures_are_drawn_and_small(trace: Path, tmp_path: Path) -> None:
    result = _simulate("--trace", trace, "--plot", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    for name in ("pareto.png", "attainment.png"):
        picture = (tmp_path / "plots" / name).read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        assert 5_000 < len(picture) <= 100_000


def test_name_of_a_file_is_no_formula(tmp_path: Path) -> None:
    (tmp_path / "a$_{$b.csv").write_text("t_s\n5\n")
    result = _simulate("--trace", tmp_path / "a$_{$b.csv", "--plot", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "pareto.png").exists()


@pytest.mark.parametrize(
    ("folder", "fault"),
    [
        ("a-file", "no folder that can be written"),
        ("a-file/below", "no folder that can be written"),
        ("/proc/none", "no folder that can be written"),
        ("folder", "pareto.png is a folder there"),
    ],
)
def test_folder_of_pictures_is_seen_to_before_anything_runs(
    trace: Path, tmp_path: Path, folder: str, fault: str
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "folder" / "pareto.png").mkdir(parents=True)
    result = _simulate("--trace", trace, "--plot", tmp_path / folder)
    assert isinstance(result.exception, CannotStart)
    assert f"--plot {tmp_path / folder}: {fault}" in str(result.exception)
    assert (result.stdout, result.stderr) == ("", "")


def test_result_is_told_before_pictures_are_drawn(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infra.simulate.plots.draw_pareto", full)
    result = _simulate("--trace", trace, "--policy", "ray", "--json", "--plot", tmp_path)
    assert isinstance(result.exception, CannotStart)
    assert "cannot be written: [Errno 28] No space left" in str(result.exception)
    assert json.loads(result.stdout)["policies"][0]["name"] == "ray"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "either --trace FILE or --generator NAME"),
        (("--generator", "sparse", "--trace", "x.csv"), "either --trace FILE or --generator NAME"),
        (("--generator", "weekly"), "there is no generator 'weekly'; there are: poisson"),
        (("--generator", "sparse", "--policy", "magic"), "there is no policy 'magic'"),
        (("--generator", "sparse", "--wake-s", -1), "--wake-s -1.0: must be a number, 0 or more"),
        (("--generator", "sparse", "--wake-s", "nan"), "--wake-s nan"),
        (("--generator", "sparse", "--wake-s", 1e12), "--wake-s 1000000000000.0: must be 3600 at"),
        (("--generator", "sparse", "--exec-s", 1e7), "--exec-s 10000000.0: must be 2592000 at"),
        (("--generator", "sparse", "--time-scale", 0), "--time-scale 0.0: must be a number, more"),
        (("--generator", "sparse", "--exec-s", "inf"), "--exec-s inf"),
        (("--generator", "sparse", "--token-s", -0.1), "--token-s -0.1"),
        (("--generator", "sparse", "--cold-start-cost-s", 0), "--cold-start-cost-s 0.0"),
        (("--generator", "sparse", "--replicas-max", 0), "--replicas-max"),
    ],
)
def test_bad_use_is_refused_by_name(arguments: tuple[object, ...], fault: str) -> None:
    result = _simulate(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in " ".join(result.stderr.split()).replace("│ ", "")


@pytest.mark.parametrize("rows", ["0\n172800000000", "0\n1e300"])
def test_slip_of_units_is_refused_instead_of_run_for_years(tmp_path: Path, rows: str) -> None:
    (tmp_path / "us.csv").write_text(f"t_s\n{rows}\n")
    result = _simulate("--trace", tmp_path / "us.csv")
    assert isinstance(result.exception, CannotStart)
    assert "us.csv: the calls span" in str(result.exception)
    assert "is t_s in seconds?" in str(result.exception)


def test_work_of_years_is_refused(tmp_path: Path) -> None:
    rows = "\n".join("0,m,2000000" for _ in range(20))
    (tmp_path / "long.csv").write_text(f"t_s,model,exec_s\n{rows}\n")
    result = _simulate("--trace", tmp_path / "long.csv", "--replicas-max", 1)
    assert isinstance(result.exception, CannotStart)
    assert "calls of m take 463 days on 1 replicas" in str(result.exception)


def test_bad_trace_is_a_failure_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("t_s\n7\n5\n")
    result = _simulate("--trace", tmp_path / "bad.csv")
    assert isinstance(result.exception, CannotStart)
    assert "bad.csv: line 3: t_s 5.0 is before 7.0" in str(result.exception)
