"""Figures add up over the runs that are kept."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import plots, report, runs
from tests.faults.availability import TWO_AT_ONCE, Availability, Share
from tests.faults.runs import Total, Verdict

FIRST = Verdict(
    commit="abcdefg",
    source="0123456789ab",
    rig="single",
    seed=1,
    seconds=600.0,
    commands=1000,
    faults=Counter({"worker-kill": 2, "link-cut": 1}),
    answers=Counter({"201": 900, "503 not_accepted": 3}),
    recoveries={"worker-kill": [1.0, 3.0], "link-cut": [2.0]},
    availability={"worker-kill": Availability(Share(9, 10), Share(4, 4), Share(1, 2)), TWO_AT_ONCE: Availability()},
    lag_seconds=0.2,
    violations=[],
)
SECOND = replace(
    FIRST,
    rig="clusters",
    seed=2,
    commands=500,
    faults={"worker-kill": 1, "leader-kill": 1},
    recoveries={"worker-kill": [5.0], "leader-kill": [9.0]},
    violations=["I1: a write", "I3: another", "I7: a third"],
)


@pytest.fixture
def no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the runs of a test elsewhere."""
    monkeypatch.setattr(runs, "KEPT", tmp_path / "reliability" / "runs.jsonl")


@pytest.mark.usefixtures("no_runs")
def test_runs_are_kept_one_after_the_other_and_read_as_they_were() -> None:
    assert runs.read() == []

    runs.keep(FIRST)
    runs.keep(SECOND)

    assert runs.read() == [FIRST, SECOND]


def test_total_adds_up_commands_faults_recoveries_and_requests() -> None:
    total = Total([FIRST, SECOND])

    assert total.commands == 1500
    assert total.faults == {"worker-kill": 3, "link-cut": 1, "leader-kill": 1}
    assert total.answers == {"201": 1800, "503 not_accepted": 6}
    assert total.recoveries["worker-kill"] == [1.0, 3.0, 5.0]
    assert total.availability["worker-kill"].writes == Share(18, 20)
    assert total.broken() == {"lost": 1, "duplicated": 0, "reordered": 0, "untrue": 1, "others": 1}


def test_report_shows_each_run_their_sum_each_fault_and_each_violation() -> None:
    text = report.printed([FIRST, SECOND])

    assert "| single | 1 | 0123456 | 600 | 1,000 | 3 | 3.0 s | 0.2 s | 0 |" in text
    assert "| 1,500 | 2 | 3 | 5 | 1 | 0 | 0 | 1 | 1 |" in text
    assert "| worker-kill | 3 | 90.0 % | 100 % | 50.0 % | 3.0 s | 5.0 s |" in text
    assert "- I7: a third" in text


def test_sentence_of_the_readme_tells_what_was_broken_too() -> None:
    assert "1,000 commands from 1 seeds went through 3 faults of 2 kinds: none was lost" in " ".join(
        report.sentence([FIRST]).split()
    )
    assert "1 was lost, none took effect twice" in " ".join(report.sentence([SECOND]).split())


def test_section_of_a_page_is_written_anew_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- runs -->\nformer\n<!-- end of runs -->\nafter\n")

    report.write("runs", "| new |\n", page)
    report.write("clusters", "| not on the page |", page)

    assert page.read_text() == "before\n<!-- runs -->\n| new |\n<!-- end of runs -->\nafter\n"


def test_plot_of_the_same_figures_has_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("first.svg", "second.svg"):
        plots.draw(Total([FIRST, SECOND]), tmp_path / name)

    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert "leader-kill" in (tmp_path / "first.svg").read_text()
