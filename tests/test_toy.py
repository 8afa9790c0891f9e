"""toy.py: its scores on points whose scores are known, and the 25 modes through its command line."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import HOME

import toy
from cli import BadInput
from diffusion import Diffusion


def run(*args):
    return subprocess.run([sys.executable, HOME / "toy.py", *map(str, args)], capture_output=True, text=True,
                          check=False)


def test_data_have_variance_one_and_perfect_scores():
    x = toy.draw(10_000)
    assert x.var(0).tolist() == pytest.approx([1, 1], rel=0.03)
    result = toy.score(x, toy.draw(10_000))
    assert result["modes"] == 25 and result["quality"] > 0.999
    assert result["frechet"] < 0.1 and result["sliced"] < 0.25


def test_a_missing_row_a_shift_and_noise_cost_what_they_must():
    held_out = toy.draw(10_000)
    row_missing = toy.draw(12_500)
    row_missing = row_missing[(row_missing[:, 0] / toy.SCALE / toy.GRID).round() != 2]
    assert toy.score(row_missing, held_out)["modes"] == 20
    shifted = toy.score(held_out + toy.SCALE * toy.GRID * torch.tensor([0.3, 0.4]), held_out)  # half a grid's length
    assert shifted["frechet"] == pytest.approx(0.25 * toy.GRID**2, rel=0.01)
    # a direction sees 0.5 |cos| of it, whose mean over a half circle is 1/pi
    assert shifted["sliced"] == pytest.approx(toy.GRID / torch.pi, rel=0.01)
    assert shifted["quality"] < 0.001
    # one mode has 14 %, others 3.6 %
    few = torch.cat([toy.draw(9_000), toy.SCALE * (toy.STD * torch.randn(1_000, 2) + 2 * toy.GRID)])
    assert toy.score(few, held_out)["modes"] == 25
    noise = toy.score(4 * toy.GRID * toy.SCALE * (torch.rand(10_000, 2) - 0.5), held_out)
    # the share of the square that 16 discs cover
    assert noise["quality"] == pytest.approx(16 * torch.pi * (4 * toy.STD) ** 2 / (4 * toy.GRID) ** 2, rel=0.1)


def test_the_exact_posterior_is_bayes_rule():
    diffusion, t = Diffusion(4, "cosine"), torch.tensor([1])
    mode = toy.SCALE * toy.GRID * torch.tensor([1.0, -1.0])
    x_0, mean = toy.true_posterior(diffusion.alpha_bar[1].sqrt() * mode, t, diffusion, 5_000)
    # the log-odds of a neighbour at distance GRID are -alpha_bar (SCALE GRID)^2 / (2 (1 - alpha_bar)), as STD is small
    odds = torch.exp(-diffusion.alpha_bar[1] * (toy.SCALE * toy.GRID) ** 2 / (2 * diffusion.one_minus_alpha_bar[1]))
    nearest = torch.cdist(x_0 / toy.SCALE, toy.MODES).argmin(1).bincount(minlength=25).view(5, 5) / len(x_0)
    assert nearest[3, 2] / nearest[3, 1] == pytest.approx(odds.item(), rel=0.25)
    assert mean.tolist() == pytest.approx(x_0.mean(0).tolist(), abs=0.03)


def test_ddgan_with_four_steps_covers_all_25_modes(tmp_path):
    done = run("--steps", 3000, "--out", tmp_path / "toy.png")  # figures/claims.csv: 93 to 94 %, seeds 0 to 2
    print(done.stdout, done.stderr[-500:])
    assert done.returncode == 0 and (tmp_path / "toy.png").read_bytes()[:4] == b"\x89PNG"
    modes, quality = re.search(r"(\d+) of 25 modes, ([\d.]+) % high-quality", done.stdout).groups()
    assert int(modes) == 25 and float(quality) >= 80


@pytest.mark.parametrize("args", [
    ("--method", "ddpm", "--T", "5"),
    ("--T", "1"),
    ("--method", "siddm", "--z-dim", "0"),
    ("--objective", "wasserstein", "--T", "2")])
def test_every_method_runs_and_says_what_it_did(args, tmp_path):
    done = run(*args, "--steps", 3, "--batch", 8, "--out", tmp_path / "a.png")
    assert done.returncode == 0 and "of 25 modes" in done.stdout and (tmp_path / "a.png").exists()


@pytest.mark.parametrize("args", [
    ("--table", "--T", "4"),
    ("--T", "0"),
    ("--out", "file/toy.png"),
    ("--r1", "-1")])
def test_bad_input_is_told_before_any_training_and_leaves_nothing(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(toy, "train", lambda *args, **options: pytest.fail("it trained"))
    with pytest.raises((BadInput, SystemExit)) as error:
        toy.main(list(args))
    told = str(error.value) if error.type is BadInput else capsys.readouterr().err.strip()
    assert args[-1] in told and "\n" not in told and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("method", ["ddgan", "siddm"])
def test_the_flags_reach_the_training_step_and_the_optimisers(method, monkeypatch):
    calls, rates = [], []

    def step(network, D, optimizer, optimizer_D, *args, **options):
        calls.append(options)
        rates.append([each.param_groups[0]["lr"] for each in (optimizer, optimizer_D)])
        optimizer.step(), optimizer_D.step()  # of nothing, but the schedulers want it

    monkeypatch.setattr(toy.train_ddgan, "train_step", step)
    monkeypatch.setattr(toy.train_siddm, "train_step", step)
    toy.train(method, 4, r1=0.5, lr_g=0.01, lr_d=0.02, energy=0.3, afd=0.4, reg=0.6, steps=17, batch=4)
    assert rates[0] == [0.01, 0.02]
    if method == "siddm":
        assert calls == 17 * [{"afd": 0.4, "reg": 0.6}]
    else:
        assert [call["r1"] for call in calls] == [8.0] + 15 * [0.0] + [8.0] and calls[0]["energy"] == 0.3


def test_the_table_trains_each_row_with_its_own_weight_of_the_afd_term(monkeypatch, capsys):
    trained = []

    def train(method, T, seed, **options):
        trained.append((method, T, seed, options["afd"]))
        return None, None

    monkeypatch.setattr(toy, "train", train)
    monkeypatch.setattr(toy, "sample", lambda *args: [toy.draw(toy.SAMPLES)])
    toy.table(3, seeds=2, afd=1.0)
    assert len(set(trained)) == len(trained) == 2 * 13 and {seed for _, _, seed, _ in trained} == {3, 4}
    assert ("siddm", 8, 4, 0.0) in trained and ("siddm", 8, 4, 1.0) in trained
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 13 and lines[-1].split()[:5] == ["SIDDM", "without", "AFD", "16", "14.37"]
