"""Claims of sections 2.1 and 2.3 about losses.py."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion import Diffusion
from losses import discriminator_loss, generator_loss, r1_penalty, simple_loss, weighted_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("T, schedule", [(2, "vp"), (4, "vp"), (1000, "vp"), (10, "cosine")])
def test_the_weighted_loss_6_is_the_kl_of_5(T, schedule):
    diffusion = Diffusion(T, schedule)
    t = torch.randint(2, T + 1, (64,))
    x_0, eps, eps_theta = torch.randn(64, 1, 3, 3), torch.randn(64, 1, 3, 3), torch.randn(64, 1, 3, 3)
    x_t = diffusion.q_sample(x_0, t, eps)
    mean, variance = diffusion.posterior(x_0, x_t, t)
    mean_theta, _ = diffusion.posterior(diffusion.x_0_from_eps(x_t, eps_theta, t), x_t, t)
    std = variance.double().sqrt()
    kl = kl_divergence(Normal(mean.double(), std), Normal(mean_theta.double(), std)).flatten(1).sum(1)
    # 1e-2: at T = 1000 the two means differ in their last three float32 digits
    torch.testing.assert_close(weighted_loss(eps, eps_theta, t, diffusion).double(), kl, rtol=1e-2, atol=0)


def test_the_simple_loss_is_the_mean_square_and_0_for_the_true_noise():
    eps = torch.randn(8, 1, 5, 5)
    assert simple_loss(eps, eps) == 0
    assert simple_loss(eps, eps + 2).item() == pytest.approx(4, rel=1e-5)


def test_the_discriminators_loss_is_8_and_the_generators_is_9_as_printed():
    V_real, V_fake = 3 * torch.randn(1000), 3 * torch.randn(1000)
    D_real, D_fake = torch.sigmoid(V_real.double()), torch.sigmoid(V_fake.double())
    assert discriminator_loss(V_real, V_fake).item() == pytest.approx((-D_real.log().mean() - (1 - D_fake).log().mean()).item(), rel=1e-5)
    assert generator_loss(V_fake).item() == pytest.approx(-D_fake.log().mean().item(), rel=1e-5)


def test_a_critic_at_chance_costs_2_log_2():
    assert discriminator_loss(torch.zeros(4), torch.zeros(4)).item() == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_finite_for_large_logits_and_large_means_real(dtype):
    V = torch.tensor([-1000.0, -50.0, 0.0, 50.0, 1000.0], dtype=dtype, requires_grad=True)
    for loss in (discriminator_loss(V, V), generator_loss(V)):
        (gradient,) = torch.autograd.grad(loss, V)
        assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()
    assert discriminator_loss(V + 1, V) < discriminator_loss(V, V + 1)
    assert generator_loss(V + 1) < generator_loss(V)


def test_r1_of_a_linear_critic_is_its_squared_slope_and_trains_the_critic():
    w = torch.tensor([3.0, -4.0], requires_grad=True)
    D = lambda x_prev, x_t, t: x_prev @ w + 7 * x_t.sum(1)
    penalty = r1_penalty(D, torch.randn(6, 2), torch.randn(6, 2), torch.ones(6, dtype=torch.int64))
    assert penalty.item() == pytest.approx(25)  # ||w||^2: only x_{t-1} counts, not x_t
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 2 * w.detach())
