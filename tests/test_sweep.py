"""experiments/sweep.py: trains what is missing, goes on with what was cut, scores once, and draws from what is committed."""

import csv
import sys

import numpy as np
import pytest
from conftest import HOME, needs_data

import cli

sys.path.insert(0, str(HOME / "experiments"))
import sweep

TINY = ["--preset", "cpu", "--width", "8", "--batch", "8"]


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """The sweep with its results in this folder."""
    monkeypatch.setattr(sweep, "FIGURES", tmp_path)
    monkeypatch.setattr(sweep, "CSV", tmp_path / "sweep.csv")
    monkeypatch.setattr(sweep, "SAMPLES", tmp_path / "samples")
    return tmp_path


def test_the_runs_are_those_of_the_figures():
    count = {}
    for name, ((script, *flags), _) in sweep.RUNS.items():
        flags = dict(zip(flags[::2], flags[1::2]))
        key = script, flags.get("--objective"), int(flags["--T"])
        count[key] = count.get(key, 0) + 1
        assert name.startswith(f"{flags.get('--objective', 'ddpm')}-{flags['--T']}")
    assert {T for script, _, T in count if script == "train_ddpm.py"} == {10, 20, 50, 100, 200, 500, 1000}
    assert all(count["train_ddgan.py", objective, T] >= 1 for objective in sweep.OBJECTIVES for T in (1, 2, 4, 6, 8, 10))
    assert all(count["train_ddgan.py", objective, T] >= 3 for objective in ("js", "hellinger") for T in (4, 10))


@needs_data
def test_a_sweep_goes_on_where_it_was(figures, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "RUNS", {
        "js-4": (["train_ddgan.py", "--T", "4", "--steps", "3", *TINY], [60]),
        "ddpm-10": (["train_ddpm.py", "--T", "10", "--steps", "3", *TINY], [50, 60]),
        "js-2": (["train_ddgan.py", "--T", "2", "--steps", "3", "--width", "12"], [60]),  # fails: 12 is no multiple of 8
    })
    arguments = ["--folder", str(figures / "runs"), "--device", "cpu"]
    sweep.main(["js-4", *arguments])
    assert [path.name for path in (figures / "samples").iterdir()] == ["js-4.npy"]
    assert np.load(figures / "samples" / "js-4.npy").shape == (20, 1, 28, 28)
    trained = (figures / "runs" / "js-4" / "model.pt").stat().st_mtime_ns
    (figures / "sweep.csv").unlink()  # as if the machine had gone down before the score
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        sweep.main(arguments)
    out = capsys.readouterr().out
    assert end.value.code == 1 and "js-2: failed with status 2: see " in out and "--width 12 is not a multiple of 8" in (figures / "runs" / "js-2.log").read_text()
    assert (figures / "runs" / "js-4" / "model.pt").stat().st_mtime_ns == trained
    with open(figures / "sweep.csv", newline="") as file:
        rows = [(row["name"], row["T"], row["steps"], row["samples"]) for row in csv.DictReader(file)]
    assert sorted(rows) == [("ddpm-10", "10", "10", "50"), ("ddpm-10", "10", "10", "60"), ("js-4", "4", "4", "60")]
    sweep.main(["js-4", "ddpm*", *arguments])  # nothing is left to do
    assert len((figures / "sweep.csv").read_text().splitlines()) == 1 + 3
    assert {path.name for path in figures.glob("*.png")} == {"samples-ddpm.png", "samples-js.png"}  # no curve: none has 10,000 samples


def test_the_line_of_an_objective_is_the_mean_over_its_seeds(figures):
    columns = dict.fromkeys(sweep.read_csv.__globals__["COLUMNS"], "1")
    rows = [columns | {"name": name, "T": "4", "samples": "10000", "fid": fid} for name, fid in (
        ("js-4", "3"), ("js-4-seed1", "4"), ("js-4-seed2", "8"), ("js-4-steps99", "50"), ("hellinger-4", "9"))]
    with open(figures / "sweep.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    found = {4: sweep.fids(4, [sweep.ddgan("js", 4, seed=seed) for seed in (0, 1, 2)]), 1: []}
    assert found[4] == [3, 4, 8]
    _, axes = sweep.subplots()
    sweep.draw_line(axes, "js", found)
    (line,) = axes.containers
    assert line[0].get_xydata().tolist() == [[4, 5]]
    assert line[2][0].get_segments()[0].tolist() == [[4, 3], [4, 8]]


def test_an_unknown_run_is_one_line(figures):
    with pytest.raises(cli.BadInput, match="nonsense is none of the runs: js-4"):
        sweep.main(["nonsense"])
    sweep.main(["--draw"])  # of nothing: no figure
    assert not list(figures.glob("*.png"))
