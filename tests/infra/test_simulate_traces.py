"""Traces: what is read, and every refusal by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.simulate.traces import BadTrace, Reading, read_trace


def _read(folder: Path, text: str, reading: Reading | None = None) -> dict[str, list[list[float]]]:
    path = folder / "trace.csv"
    path.write_text(text)
    loads = read_trace(path, reading or Reading())
    return {load.model: [load.arrivals_s.tolist(), load.exec_s.tolist()] for load in loads}


def test_times_alone_are_one_models_calls_from_zero_on(tmp_path: Path) -> None:
    assert _read(tmp_path, "t_s\n5\n5\n7.5\n") == {"all": [[0, 0, 2.5], [0.1, 0.1, 0.1]]}


def test_models_have_their_own_calls_on_one_clock(tmp_path: Path) -> None:
    found = _read(tmp_path, "model,t_s,exec_s\na,1,2\nb,3,4\na,5,6\n")
    assert found == {"a": [[0, 4], [2, 6]], "b": [[2], [4]]}


def test_length_is_exec_s_else_tokens_else_what_is_given(tmp_path: Path) -> None:
    text = "t_s,exec_s,input_tokens,output_tokens\n0,2,900,7\n1,,900,7\n2,,900,\n"
    found = _read(tmp_path, text, Reading(token_s=0.5, exec_s=9))
    assert found["all"][1] == [2, 3.5, 9]


def test_tokens_of_one_column_count_as_well(tmp_path: Path) -> None:
    assert _read(tmp_path, "t_s,tokens\n0,10\n", Reading(token_s=0.1))["all"][1] == [1]


def test_calls_that_failed_count_as_arrivals(tmp_path: Path) -> None:
    found = _read(tmp_path, "t_s,exec_s,status\n0,1,SUCCEED\n1,,FAILED\n")
    assert found["all"] == [[0, 1], [1, 0.1]]


def test_scale_plays_it_faster_and_leaves_the_calls_as_long(tmp_path: Path) -> None:
    found = _read(tmp_path, "t_s,exec_s\n10,3\n110,3\n", Reading(time_scale=100))
    assert found["all"] == [[0, 1], [3, 3]]


def test_blank_lines_spaces_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    assert _read(tmp_path, "\ufefft_s , model\n1, a\n\n2,a \n")["a"][0] == [0, 1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "line 1: no column t_s (seconds of arrival); there is: nothing"),
        ("time,model\n1,a\n", "line 1: no column t_s (seconds of arrival); there is: time, model"),
        ("t_s,t_s\n1,1\n", "line 1: column t_s is there twice"),
        ("t_s\n", "has no calls"),
        ("t_s,model\n1,a\n,a\n", "line 3: t_s is missing"),
        ("t_s\nsoon\n", "line 2: t_s 'soon' is not a number"),
        ("t_s\nnan\n", "line 2: t_s 'nan' is not a number"),
        ("t_s\n1e999\n", "line 2: t_s '1e999' is not a number"),
        ("t_s\n1\n7\n5\n", "line 4: t_s 5.0 is before 7.0: sort the rows by t_s"),
        ("t_s,model\n1,a\n7,b\n5,a\n", "line 4: t_s 5.0 is before 7.0"),
        ("t_s,exec_s\n1,-2\n", "line 2: exec_s -2.0 is negative"),
        ("t_s,exec_s\n1,long\n", "line 2: exec_s 'long' is not a number"),
        ("t_s,exec_s\n1,32000000\n", "line 2: a call of 32000000.0 s: more than 2592000 s"),
        ("t_s,tokens\n1,-1\n", "line 2: tokens -1.0 is negative"),
        ("t_s,model\n1\n", "line 2: 1 cells under 2 names"),
        ("t_s\n1,2\n", "line 2: 2 cells under 1 names"),
        ("t_s\n1_000\n", "line 2: t_s '1_000' is not a number"),
        ("t_s\n\u0661\u0662\n", "line 2: t_s '\u0661\u0662' is not a number"),
        ("model,t_s,,\na,1,,\nb,x,,\n", "line 3: t_s 'x' is not a number"),
        ("model,t_s,,\na,1\n", "line 2: 2 cells under 4 names"),
        ('t_s,model\n1,"a\nb"\n\n2,a\nx,a\n', "line 6: t_s 'x' is not a number"),
        ('t_s,model\n1,a\nx,"a\nb"\n', "line 3: t_s 'x' is not a number"),
        ("t_s\n0\n172800000000\n", "the calls span 2e+06 days, more than 400: is t_s in seconds?"),
        ("t_s\n0\n1e300\n", "the calls span 1.157e+295 days, more than 400: is t_s in"),
        ("t_s\n-1e308\n1e308\n", "the calls span inf days, more than 400: is t_s in"),
        ("t_s,model\n0,a\n34560001,b\n", "the calls span 400 days, more than 400: is t_s in"),
        ("t_s\n" + "9" * 200_000 + "\n", "cannot be read as CSV: field larger"),
    ],
)
def test_what_is_wrong_is_refused_by_line_and_name(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(BadTrace) as refused:
        _read(tmp_path, text)
    assert f"trace.csv: {fault}" in str(refused.value)


def test_empty_names_at_the_end_of_the_header_are_no_columns(tmp_path: Path) -> None:
    assert _read(tmp_path, "t_s,model,,\n1,a,,\n2,a,,\n") == {"a": [[0, 1], [0.1, 0.1]]}


@pytest.mark.parametrize(
    ("time_scale", "days"), [(1e-12, "1.157e+07"), (1e-320, "inf"), (0.01, "1157")]
)
def test_span_is_that_at_which_it_is_played(tmp_path: Path, time_scale: float, days: str) -> None:
    text = "t_s\n0\n1\n" if time_scale < 0.01 else "t_s\n0\n1e6\n"
    with pytest.raises(BadTrace, match="is t_s in seconds") as refused:
        _read(tmp_path, text, Reading(time_scale=time_scale))
    assert f"span {days} days at a time scale of {time_scale:g}, more" in str(refused.value)


def test_long_trace_may_be_played_fast(tmp_path: Path) -> None:
    found = _read(tmp_path, "t_s\n0\n4e8\n", Reading(time_scale=100))
    assert found["all"][0] == [0, 4e6]


def test_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"none\.csv: cannot be read as CSV"):
        read_trace(tmp_path / "none.csv", Reading())
    (tmp_path / "zip.csv").write_bytes(b"t_s\n\xff\xfe\n")
    with pytest.raises(BadTrace, match=r"zip\.csv: cannot be read as CSV"):
        read_trace(tmp_path / "zip.csv", Reading())


def test_arrays_are_what_the_engine_takes(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("t_s\n1\n")
    (load,) = read_trace(tmp_path / "trace.csv", Reading())
    assert load.arrivals_s.dtype == load.exec_s.dtype == np.float64
