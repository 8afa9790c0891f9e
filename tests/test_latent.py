"""Section 2.2: how much z decides (experiments/latent.py), and the energy score that makes it decide."""

import math
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import HOME, needs_data

import toy
from diffusion import Diffusion
from losses import energy_score
from train_ddgan import train_step

latent = runpy.run_path(str(HOME / "experiments/latent.py"))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_within_groups_is_that_of_the_variance_that_was_put_there(share):
    between, within = torch.randn(4000, 1, 5), torch.randn(4000, 8, 5)
    draws = math.sqrt(1 - share) * between + math.sqrt(share) * within
    assert latent["share_within"](draws) == pytest.approx(share, abs=0.02)  # 4,000 groups know a variance to 2 %


def test_the_shares_over_the_images_are_those_of_bayes_rule_for_two_points():
    """x_0 = -1 or 1: Var(x_0 | x_t) = 1 - tanh^2(sqrt(alpha_bar) x_t / (1 - alpha_bar))."""
    diffusion, images = Diffusion(4), torch.tensor([[-1.0], [1.0]]).repeat(500, 1)
    for t in (1, 2, 3, 4):
        alpha_bar, variance = diffusion.alpha_bar[t], diffusion.one_minus_alpha_bar[t]
        x_t = alpha_bar.sqrt() + variance.sqrt() * torch.randn(200_000)
        expected = (1 - torch.tanh(alpha_bar.sqrt() * x_t / variance) ** 2).mean().item()
        x_0 = images[torch.randint(1000, (4000,))]
        # 4,000 x_t, var(N) by N - 1; x_0 is one of the images, so that the mean's error is the variance
        spread, error = latent["shares_over_images"](x_0, images, t, diffusion)
        assert spread == pytest.approx(expected, abs=0.03) and error == pytest.approx(expected, abs=0.04)


def test_the_mean_over_too_few_images_errs_by_more_than_they_spread():
    images, new = torch.randn(20, 784), torch.randn(500, 784)
    spread, error = latent["shares_over_images"](new, images, 1, Diffusion(4))
    assert spread < 0.1 and error > 1  # of a new one all is unknown, though one of the 20 has nearly all the weight


def test_in_a_row_only_z_differs():
    """A generator that ignores z draws one image in a row: x_T and the noise of every step are the row's."""
    diffusion = Diffusion(4)
    ignores, uses = (SimpleNamespace(T=4, shape=(1, 8, 8), device="cpu", diffusion=diffusion, predict_x_0=predict)
                     for predict in (lambda x_t, t: x_t.tanh(), lambda x_t, t: torch.randn_like(x_t)))
    drawn = latent["samples_of_z"](ignores, n=3, draws=4)
    assert drawn.shape == (3, 4, 1, 8, 8) and (drawn == drawn[:, :1]).all() and (drawn[0] != drawn[1]).any()
    assert latent["share_within"](drawn) == pytest.approx(0, abs=1e-6)
    assert latent["share_within"](latent["samples_of_z"](uses, n=100, draws=8)) == pytest.approx(1, abs=0.05)


@needs_data
def test_the_command_prints_a_share_for_every_t_and_draws_the_figure(tmp_path):
    command = [sys.executable, "experiments/latent.py", "weights/ddgan.pt", "--n", "6", "--draws", "2",
               "--figure", tmp_path / "latent.png"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shares = [line.split()[3:7:2] for line in done.stdout.splitlines() if re.match(r" +[1-4] ", line)]
    spread, error = (list(map(float, column)) for column in zip(*shares))
    assert spread == sorted(spread) and spread[0] < 20 and error[0] < 60
    assert spread[3] > 99 and error[3] > 60  # x_4 is noise, and says nothing of x_0
    assert (tmp_path / "latent.png").read_bytes()[:4] == b"\x89PNG"
    done = subprocess.run([*command[:2], "weights/ddpm.pt"], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "has no z" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("data", ["gaussian", "two points"])
def test_the_energy_score_is_smallest_where_g_is_spread_as_the_data(data):
    n = 400_000
    x_0 = torch.randn(n, 1) if data == "gaussian" else torch.randint(0, 2, (n, 1)) * 2.0 - 1
    draws = torch.randn(2, n, 1) if data == "gaussian" else torch.randint(0, 2, (2, n, 1)) * 2.0 - 1
    spreads = [0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0]
    scores = [energy_score(x_0, *(spread * draws)).item() for spread in spreads]
    assert spreads[scores.index(min(scores))] == 1.0
    if data == "gaussian":  # E|x - g| of two standard normals is 2/sqrt(pi)
        assert scores[3] == pytest.approx(1 / math.sqrt(math.pi), abs=0.005)


def test_the_energy_scores_gradient_is_finite_where_two_draws_coincide():
    g = torch.ones(4, 3, requires_grad=True)
    for x_0, g_2 in ((torch.zeros(4, 3), g), (torch.ones(4, 3), g), (torch.ones(4, 3), g.detach().clone())):
        (gradient,) = torch.autograd.grad(energy_score(x_0, g, g_2), g)
        assert gradient.isfinite().all()


def test_near_a_generator_that_ignores_z_the_energy_score_falls_as_z_is_used_more():
    """On 25 Gaussians, at small weights of z; at 0 two draws coincide, and what rewards z has the gradient 0."""
    diffusion, G = Diffusion(4, "slow-cosine"), toy.Generator(4, z_dim=8)
    torch.nn.init.normal_(G.layers[-1].weight, std=0.1)  # G's last layer begins as 0, which hides all others
    with torch.no_grad():
        G.layers[0].weight[:, -8:] = 0
    x_0, t = toy.draw(20_000), torch.full((20_000,), 3)
    x_t = diffusion.q_sample(x_0, t)
    fakes = [G(x_t, torch.randn(20_000, 8), t) for _ in range(2)]
    assert torch.equal(*fakes)  # z is ignored
    z = torch.randn(2, 20_000, 8)
    with torch.no_grad():
        G.layers[0].weight[:, -8:] = 1e-3 * torch.randn(128, 8)  # a step away from it
    score = energy_score(x_0, G(x_t, z[0], t), G(x_t, z[1], t))
    score.backward()
    weight = G.layers[0].weight
    assert (weight.grad[:, -8:] * weight[:, -8:]).sum() < 0


def test_the_energy_score_is_added_to_gs_loss_with_its_weight():
    grads = []
    for energy in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        G, D, diffusion = toy.Generator(4, z_dim=8), toy.Discriminator(4), Diffusion(4)
        optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
        train_step(G, D, *optimizers, toy.draw(64), diffusion, 8, energy=energy)
        grads.append(G.layers[-1].bias.grad.clone())
    torch.testing.assert_close(grads[2] - grads[0], 2 * (grads[1] - grads[0]), rtol=1e-4, atol=1e-6)
    assert (grads[1] - grads[0]).abs().max() > 1e-3
