"""experiments/claims.py: every run once, at the setting that it says, and the table and the map from the results."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import HOME

import cli
import toy

sys.path.insert(0, str(HOME / "experiments"))
import claims


def test_the_settings_are_those_of_the_claims():
    assert len(claims.EQUAL) == len(claims.PROPORTIONAL) == 5 * 4 * 5 and len(claims.RATES) == 5 * 16 * 3
    assert {setting[2] for setting in claims.EQUAL} == {6000}
    assert {setting[1:3] for setting in claims.PROPORTIONAL} == {(1, 1500), (2, 3000), (4, 6000), (8, 12000)}
    assert len(set(claims.EQUAL) & set(claims.PROPORTIONAL)) == 25  # T = 4
    assert claims.COMPARED == ["js", "hellinger", "reverse-kl", "total-variation", "wasserstein"]


def test_what_is_done_is_not_done_again(tmp_path):
    path = tmp_path / "claims.csv"
    first, second = ("js", 2, 3, 0.001, 0.002, 7), ("wasserstein", 1, 2, 0.001, 0.002, 0)
    claims.run_all([first], path, jobs=1)
    before = path.read_bytes()
    claims.run_all([first, second, second], path, jobs=2)
    assert path.read_bytes().startswith(before)
    found = claims.read(path)
    assert list(found) == [first, second] and len(path.read_text().splitlines()) == 3
    torch.set_num_threads(1)
    network, diffusion = toy.train("ddgan", 2, 7, "js", steps=3, lr_g=0.001, lr_d=0.002)  # seeds all that follows
    x = toy.sample(network, diffusion, toy.SAMPLES)[-1]
    # four digits are kept
    assert found[first]["frechet"] == pytest.approx(toy.score(x, toy.draw(toy.SAMPLES))["frechet"], abs=6e-5)


def test_a_run_that_diverges_is_a_failed_one(monkeypatch):
    monkeypatch.setattr(toy, "sample", lambda *args, **kwargs: [torch.full((toy.SAMPLES, 2), torch.nan)])
    row = claims.measure(("js", 2, 1, 0.001, 0.002, 0))
    assert claims.failed(row) and row["frechet"] == float("inf")


def test_the_table_has_the_median_the_range_and_the_failed_runs_and_the_map_the_share_that_works(tmp_path, capsys):
    of_js = [setting for setting in claims.EQUAL if setting[:2] == ("js", 4)]
    rows = [[*of_js[0], 25, 0.9, 1.0, 0.1], [*of_js[1], 19, 0.9, 3.0, 0.1], [*of_js[2], 25, 0.4, 8.0, 0.1]]
    rows += [[*s, 25 if s[3] >= 2e-3 else 3, 0.9, 1.0, 0.1] for s in claims.RATES if s[0] == "hellinger" and s[5] < 2]
    with open(tmp_path / "c.csv", "w", newline="") as file:
        csv.writer(file).writerows([claims.COLUMNS, *rows])
    claims.main(["steps", "--draw", "--csv", str(tmp_path / "c.csv")])
    lines = capsys.readouterr().out.splitlines()
    # T = 4 is in both tables
    assert sum(line.startswith("js") and "3.00 (1.00-8.00), 2/3" in line for line in lines) == 2
    claims.main(["rates", "--draw", "--csv", str(tmp_path / "c.csv")])
    assert "hellinger         50.0 % of 32 runs work, by seed 8, 8, 0" in capsys.readouterr().out
    assert (tmp_path / "stability.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("text", [
    "a,b\n1,2\n",
    ",".join(claims.COLUMNS) + "\njs,4\n",
    ",".join(claims.COLUMNS) + "\n" + "js," * 9 + "x\n"])
def test_a_damaged_table_is_one_line_and_stays(text, tmp_path):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(cli.BadInput, match="is not a table of these results"):
        claims.main(["steps", "--csv", str(tmp_path / "c.csv")])
    assert (tmp_path / "c.csv").read_text() == text


def ignores_control_c(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:  # it has ended
        return 0
    return int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16) >> signal.SIGINT - 1 & 1


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="asks Linux for children")
def test_control_c_ends_the_workers_at_once(started, tmp_path):
    command = [sys.executable, HOME / "experiments" / "claims.py", "rates", "--jobs", "1", "--csv", tmp_path / "c.csv"]
    process = started(command, stderr=subprocess.PIPE)
    children, deadline = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.time() + 300
    while sum(map(ignores_control_c, children.read_text().split())) < 2:  # the worker, which trains, and its tracker
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
    deadline = time.time() + 60
    with pytest.raises(ProcessLookupError):  # nobody is left of the group
        while time.time() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
