"""experiments/sweep.py: trains what is missing, resumes what was cut, scores once, and draws from what is committed."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import HOME, needs_data

import cli
from fid import COLUMNS

sys.path.insert(0, str(HOME / "experiments"))
import sweep

TINY = ["--preset", "cpu", "--width", "8", "--batch", "8"]


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dict.fromkeys(COLUMNS, "1") | row for row in rows)


def test_the_runs_are_those_of_the_figures():
    expected = {}
    for objective in ("js", "hellinger", "reverse-kl", "total-variation", "wasserstein"):
        expected |= {f"{objective}-{T}": ("train_ddgan.py", objective, T, 6000, 0, ["10000"])
                     for T in (1, 2, 4, 6, 8, 10)}
        expected |= {f"{objective}-{T}-seed{seed}": ("train_ddgan.py", objective, T, 6000, seed, ["10000"])
                     for T in (1, 4, 10) for seed in (1, 2)}
    expected |= {f"js-{T}-steps{1500 * T}": ("train_ddgan.py", "js", T, 1500 * T, 0, ["10000"]) for T in (1, 2, 10)}
    expected |= {f"ddpm-{T}": ("train_ddpm.py", None, T, 7000, 0, ["2000", "10000"]) for T in (10, 20, 50, 100)}
    expected |= {f"ddpm-{T}": ("train_ddpm.py", None, T, 7000, 0, ["2000"]) for T in (200, 500, 1000)}
    found = {}
    for name, ((script, *flags), counts) in sweep.RUNS.items():
        value = dict(zip(flags[::2], flags[1::2]))
        found[name] = (script, value.get("--objective"), int(value["--T"]), int(value.get("--steps", 0)) or None,
                       int(value.get("--seed", 0)), counts)
    assert found == expected


@needs_data
def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    of_js = ["train_ddgan.py", "--T", "4", *TINY]
    monkeypatch.setattr(sweep, "RUNS", {
        "js-4": ([*of_js, "--steps", "4"], ["60"]),
        "ddpm-10": (["train_ddpm.py", "--T", "10", "--steps", "3", *TINY], ["50", "60"]),
        # fails: 12 is no multiple of 8
        "js-2": (["train_ddgan.py", "--T", "2", "--steps", "3", "--width", "12"], ["60"]),
    })
    cut = [*of_js, "--steps", "2", "--out", tmp_path / "runs" / "js-4", "--device", "cpu"]
    subprocess.run([sys.executable, *cut], cwd=HOME, check=True, capture_output=True)
    write(tmp_path / "sweep.csv", [{"name": "ddpm-10", "samples": "50", "T": "10"}])  # cut between its two scores
    arguments = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        sweep.main(arguments)
    out = capsys.readouterr().out
    log = (tmp_path / "runs" / "js-2.log").read_text()
    assert (end.value.code == 1 and "js-2: train_ddgan.py ended with status 2" in out
            and "--width 12 is not a multiple of 8" in log)
    with open(tmp_path / "runs" / "js-4" / "log.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = [(row["name"], row["samples"], row["T"], row["fid"] == "1") for row in csv.DictReader(file)]
    assert sorted(rows) == [("ddpm-10", "50", "10", True), ("ddpm-10", "60", "10", False), ("js-4", "60", "4", False)]
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"js-4.npy", "ddpm-10.npy"}
    assert np.load(tmp_path / "samples" / "js-4.npy").shape == (20, 1, 28, 28)
    before = (tmp_path / "sweep.csv").read_bytes()
    sweep.main(["js-4", "ddpm*", *arguments])
    assert "nothing is left to do" in capsys.readouterr().out and (tmp_path / "sweep.csv").read_bytes() == before
    # no curve: none has 10,000 samples
    assert {path.name for path in tmp_path.glob("*.png")} == {"samples-ddpm.png", "samples-js.png"}


def test_the_line_of_an_objective_is_the_mean_over_its_seeds(tmp_path):
    fids = {"js-4": "3", "js-4-seed1": "4", "js-4-seed2": "8", "js-4-steps99": "50", "hellinger-4": "9"}
    write(tmp_path / "sweep.csv", [{"name": name, "T": "4", "samples": "10000", "fid": fid}
                                   for name, fid in fids.items()])
    found = {4: sweep.fids(sweep.read_csv(tmp_path / "sweep.csv"),
                           [sweep.ddgan("js", 4, seed=seed) for seed in range(3)]),
             1: []}
    assert found[4] == [3, 4, 8]
    _, axes = sweep.subplots()
    sweep.draw_line(axes, "js", found)
    (line,) = axes.containers
    assert line[0].get_xydata().tolist() == [[4, 5]]
    assert line[2][0].get_segments()[0].tolist() == [[4, 3], [4, 8]]
    assert sweep.draw(tmp_path) == ["fid-of-T-ddgan.png"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["nonsense"], "nonsense is none of the runs: js-4"), (["--draw", "js-4"], "leave js-4 out"),
    (["js-4", "--folder", "{tmp}/file/runs"], "cannot write"), (["js-4", "--results", "{tmp}/file"], "cannot write")])
def test_bad_input_is_one_line_before_any_work(arguments, message, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(cli.BadInput, match=message):
        sweep.main([*(["--results", str(tmp_path)] if "--results" not in arguments else []), *arguments])


def test_with_no_results_there_is_no_figure(tmp_path, capsys):
    sweep.main(["--draw", "--results", str(tmp_path)])
    assert "nothing is scored yet" in capsys.readouterr().out and not list(tmp_path.iterdir())


@needs_data
@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="signals")
def test_a_sweep_that_is_ended_ends_its_trainers_which_save(started, tmp_path):
    command = [sys.executable, HOME / "experiments" / "sweep.py", "js-4", "--device", "cpu", "--jobs", "1",
               "--folder", tmp_path / "runs", "--results", tmp_path]
    process = started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log, deadline = tmp_path / "runs" / "js-4.log", time.time() + 120
    while not (log.exists() and "0%|" in log.read_text()):  # it trains
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.2)
    process.terminate()  # the sweep alone
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and b"Traceback" not in err
    assert "continue with --resume" in log.read_text() and (tmp_path / "runs" / "js-4" / "checkpoint.pt").exists()
    assert not (tmp_path / "sweep.csv").exists()
