"""experiments/claims.py: every run once, at the setting that it says, and the table and the map from the results."""

import csv
import sys

import pytest
from conftest import HOME

sys.path.insert(0, str(HOME / "experiments"))
import claims

import toy


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "CSV", tmp_path / "claims.csv")
    return tmp_path / "claims.csv"


def test_the_settings_are_those_of_the_claims():
    assert len(claims.EQUAL) == len(claims.PROPORTIONAL) == 5 * 4 * 5 and len(claims.RATES) == 5 * 16 * 3
    assert {setting[2] for setting in claims.EQUAL} == {6000}
    assert {setting[1:3] for setting in claims.PROPORTIONAL} == {(1, 1500), (2, 3000), (4, 6000), (8, 12000)}
    assert len(set(claims.EQUAL) & set(claims.PROPORTIONAL)) == 25  # T = 4
    assert all((lr_g, lr_d) == (toy.LR, toy.LR_D["ddgan"]) for _, _, _, lr_g, lr_d, _ in claims.EQUAL)


def test_what_is_done_is_not_done_again(results, monkeypatch):
    first, second = ("js", 2, 3, 0.001, 0.002, 7), ("wasserstein", 1, 2, 0.001, 0.002, 0)
    claims.run_all([first], jobs=1)
    before = results.read_text()
    claims.run_all([first, second, second], jobs=2)
    assert results.read_text().startswith(before)
    found = claims.read()
    assert list(found) == [first, second] and results.read_text().count("\n") == 3
    network, diffusion = toy.train("ddgan", 2, 7, "js", steps=3, lr_g=0.001, lr_d=0.002)
    x = toy.sample(network, diffusion, toy.SAMPLES, z_dim=8)[-1]
    assert found[first]["frechet"] == pytest.approx(toy.score(x, toy.draw(toy.SAMPLES))["frechet"], rel=1e-2)


def test_the_table_has_the_mean_the_range_and_the_failed_runs_and_the_map_the_share_that_works(results, capsys):
    def row(setting, modes, quality, frechet):
        return [*setting, modes, quality, frechet, 0.1]

    of_js = [setting for setting in claims.EQUAL if setting[:2] == ("js", 4)]
    rows = [row(of_js[0], 25, 0.9, 1.0), row(of_js[1], 19, 0.9, 3.0), row(of_js[2], 25, 0.4, 5.0)]
    of_rates = [setting for setting in claims.RATES if setting[0] == "hellinger"]
    rows += [row(setting, 25 if setting[3] >= 2e-3 else 3, 0.9, 1.0) for setting in of_rates]
    with open(results, "w", newline="") as file:
        csv.writer(file).writerows([claims.COLUMNS, *rows])
    claims.main(["steps", "--print"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("js") and "3.00 (1.00-5.00), 2/3" in line for line in lines) == 2  # T = 4 is in both tables
    claims.main(["rates", "--print"])
    assert "hellinger         50.0 % of the runs work" in capsys.readouterr().out
    assert results.with_name("stability.png").read_bytes()[:4] == b"\x89PNG"
