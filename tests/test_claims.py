from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pl_robust._claims import Claim, column, conclude, differences, load_script, run_each, run_miniature, tabulate


@pytest.mark.parametrize(
    ("values", "low", "high", "holds", "band"),
    [
        ([0.2, 0.9], 0.2, 0.9, True, "0.200 to 0.900"),  # the ends belong to it
        ([0.2, 0.9], 0.21, 0.9, False, "0.210 to 0.900"),
        ([0.2, 0.9], -math.inf, 0.8, False, "at most 0.800"),
        ([0.8, 0.0, 0.8], 0.5, math.inf, False, "at least 0.500"),  # a good mean does not hide a bad seed
        ([0.8, 0.6], 0.5, math.inf, True, "at least 0.500"),
        ([0.8, math.nan], -math.inf, math.inf, False, None),
        ([math.nan, 0.8], 0.5, 1, False, None),
        ([], 0, 1, False, None),
    ],
)
def test_a_claim_holds_if_every_seed_is_in_the_band(
    values: list[float], low: float, high: float, holds: bool, band: str | None
) -> None:
    claim = Claim("it works", values, low, high)
    assert claim.holds is holds
    assert band is None or claim.band == band


GOOD = Claim("it rises", [1.0, 2.0], low=0.5, digits=1)
BAD = Claim("it stays", [1.0, 2.0], high=1.5, digits=2)


def test_the_table_is_markdown() -> None:
    head, line, first, second = tabulate([GOOD, BAD]).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:3]] == ["claim", "our figure"]
    assert set(line) == {"|", "-"}
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (first, second)]
    assert cells[0] == ["it rises", "1.5", "1.0, 2.0", "at least 0.5", "pass"]
    assert cells[1] == ["it stays", "1.50", "1.00, 2.00", "at most 1.50", "FAIL"]
    assert {row.count("|") for row in (head, line, first, second)} == {6}


def test_a_bar_in_a_claim_ends_no_cell() -> None:
    row = tabulate([Claim("KL(p || q) is small", [0.1], high=1)]).splitlines()[2]
    assert row.startswith("| KL(p \\|\\| q) is small | 0.100 ")


def test_what_was_found_is_kept_and_a_failure_is_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conclude("A paper", [GOOD], [3, 5], Figure(), tmp_path / "a" / "b")
    said = capsys.readouterr()
    assert tabulate([GOOD]) in said.out
    assert not said.err
    assert (tmp_path / "a" / "b" / "claims.md").read_text() == f"A paper\n\n{tabulate([GOOD])}\n"
    assert (tmp_path / "a" / "b" / "claims.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as ended:
        conclude("A paper", [GOOD, BAD], [3, 5], Figure(), tmp_path)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "1 of 2 claims failed\n"
    with (tmp_path / "claims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["claim"], row["holds"]) for row in rows] == [("it rises", "True"), ("it stays", "False")]
    assert [float(rows[0][name]) for name in ("mean", "low", "high", "seed 3", "seed 5")] == [1.5, 0.5, math.inf, 1, 2]


@pytest.mark.parametrize(("claims", "seeds"), [([], [0]), ([GOOD], [0]), ([GOOD, Claim("c", [1.0])], [0, 1])])
def test_a_verdict_needs_a_value_of_every_seed(claims: list[Claim], seeds: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a value for each of the {len(seeds)} seeds, got \["):
        conclude("A paper", claims, seeds, Figure(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def measured(options: Any, extra: Sequence[str]) -> tuple[list[Claim], Figure]:
    """Values between the seed and ten times the seed, or as much as is asked for."""
    factor = int(extra[0]) if extra else 10
    results = run_each(
        lambda cell: {"x": float(str(cell["seed"])) * factor}, ["once", "twice"], options, {"factor": factor}
    )
    assert list(results) == ["once", "twice"]
    values = differences(column(results["once"], "x"), [0.0] * len(options.seeds))
    return [Claim("large", values, low=5)], Figure()


def test_a_miniature_measures_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--folder", "mini", "--seeds", "2", "1"]
    run_miniature("A paper\n\nand more", measured, arguments)
    assert "| 20.000, 10.000 |" in capsys.readouterr().out  # in the order of the seeds
    assert Path("mini/claims.md").read_text().startswith("A paper\n\n|")
    kept = json.loads(Path("mini/runs/run=twice,seed=2.json").read_text())
    assert kept["result"] == {"x": 20}
    with pytest.raises(SystemExit, match="2"):  # a mistake
        run_miniature("A paper", measured, [*arguments, "--", "4"])
    assert "experiment" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):  # a claim that fails
        run_miniature("A paper", measured, ["--folder", "other", "--seeds", "2", "1", "--", "4"])
    assert Path("other/claims.png").exists()


def test_finished_runs_are_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    run_miniature("A paper", measured, ["--folder", "mini", "--seeds", "1", "2"])
    changed = {"experiment": {}, "cell": {"run": "once", "seed": 1}, "result": {"x": 7}}
    path = Path("mini/runs/run=once,seed=1.json")
    changed["experiment"] = json.loads(path.read_text())["experiment"]
    path.write_text(json.dumps(changed))
    run_miniature("A paper", measured, ["--folder", "mini", "--seeds", "1", "2", "3"])
    assert "| 7.000, 20.000, 30.000 |" in Path("mini/claims.md").read_text()


def test_the_seed_is_the_scripts_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_miniature("A paper", measured, ["--folder", "mini", "--", "--seed_everything=3"])
    said = capsys.readouterr().err
    assert said == "miniature: error: the seeds are set by --seeds: leave out --seed_everything=3\n"
    assert not Path("mini").exists()


def test_a_loaded_script_is_its_own_and_in_no_register(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(
        "from __future__ import annotations\n\n\ndef half(x: float) -> float:\n    return x / 2\n"
    )
    module = load_script(tmp_path / "study.py")
    assert module.half(3) == 1.5
    assert module.__name__ == "__study__"
    assert "__study__" not in sys.modules  # so that a worker gets its functions, not its name
