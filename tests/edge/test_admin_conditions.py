"""If-Match and If-None-Match, and how problems of documents are told apart by their paths."""

from __future__ import annotations

import pytest

from edge.admin.conditions import (
    Condition,
    MustBe,
    MustBeNew,
    MustExist,
    Unconditional,
    expected_revision,
    is_fresh,
    read_condition,
    tag,
)
from edge.admin.problems import Problem, errors_of
from registry_sync.endpoints import RevisionConflict


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "condition"),
    [
        (None, None, Unconditional()),
        (None, "*", MustBeNew()),
        (" * ", None, MustExist()),
        ('"7"', None, MustBe(frozenset({7}))),
        (' "7" ,\t"8"', None, MustBe(frozenset({7, 8}))),
        ('W/"7"', None, MustBe(frozenset())),
        ('W/"7", "8"', None, MustBe(frozenset({8}))),
        ('"0"', None, MustBe(frozenset())),
        ('"07"', None, MustBe(frozenset())),
        ('"a,b"', None, MustBe(frozenset())),
        ('""', None, MustBe(frozenset())),
        ('"99999999999999999999"', None, MustBe(frozenset())),
    ],
)
def test_condition_is_read(
    if_match: str | None, if_none_match: str | None, condition: Condition
) -> None:
    assert read_condition(if_match, if_none_match) == condition


@pytest.mark.parametrize("header", ["", "7", '"7', '"7" "8"', '"7",', '"7",,"8"', '"7\x00"', "W/*"])
def test_malformed_condition_is_refused(header: str) -> None:
    with pytest.raises(Problem) as found:
        read_condition(header, None)
    assert found.value.status == 400
    with pytest.raises(Problem):
        is_fresh(header, tag(7))


def test_long_malformed_condition_is_refused_at_once() -> None:
    with pytest.raises(Problem):
        read_condition('"7", ' * 5000 + '"', None)


@pytest.mark.parametrize(
    ("condition", "current", "expected"),
    [
        (Unconditional(), 7, None),
        (MustBeNew(), 7, 0),  # the compare-and-swap itself refuses it
        (MustExist(), 7, None),
        (MustBe(frozenset({6})), 7, 6),  # likewise
        (MustBe(frozenset({6, 7})), 7, 7),
    ],
)
def test_compare_and_swap_is_told_what_to_expect(
    condition: Condition, current: int, expected: int | None
) -> None:
    assert expected_revision(condition, "m", lambda: current) == expected


def test_condition_that_fails_already_says_both_revisions() -> None:
    with pytest.raises(RevisionConflict, match="at revision 7, yours is 6"):
        expected_revision(MustBe(frozenset({5, 6})), "m", lambda: 7)
    for condition in (MustExist(), MustBe(frozenset())):
        with pytest.raises(Problem) as found:
            expected_revision(condition, "m", lambda: 0)
        assert (found.value.status, found.value.more["current_revision"]) == (412, 0)


def test_reader_has_what_any_of_its_tags_names() -> None:
    assert is_fresh("*", tag(7))
    assert is_fresh('"6", W/"7"', tag(7))
    assert not is_fresh('"6"', tag(7))
    assert not is_fresh(None, tag(7))


@pytest.mark.parametrize(
    ("problem", "path", "message"),
    [
        ("$: not YAML: x", "$", "not YAML: x"),
        ("$.a: expected: b", "$.a", "expected: b"),
        ("$.variants[12].weight: x", "$.variants[12].weight", "x"),
        ('$.labels["a: b"].c: x: y', '$.labels["a: b"].c', "x: y"),
        ('$["\\"]: x"]: y', '$["\\"]: x"]', "y"),
        ("no path at all", "$", "no path at all"),
    ],
)
def test_problem_of_a_document_is_split_into_path_and_message(
    problem: str, path: str, message: str
) -> None:
    assert errors_of([problem]) == [{"path": path, "message": message}]
