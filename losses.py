"""Objectives: eqs. (8) and (9); section 2.4's table of divergences and what follows from a row; eq. (6) and the bound.

A critic's output V is unbounded, and larger V means *real*, for every objective. Outputs have shape (B,), and the
losses of critic and generator are scalars, computed in float32 whatever the networks ran in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def at(table, t, like):
    """diffusion.at: table[t] for t of shape (B,), as (B, 1, ..., 1). Here too, so that this file needs torch alone."""
    return table[t].view(-1, *[1] * (like.dim() - 1))


def critic_values(V):
    """V in float32. ValueError unless it is one number an image, (B,): (B, 1) would be averaged wrongly, unnoticed."""
    if V.dim() != 1:
        raise ValueError(f"a critic's output has shape {tuple(V.shape)}: it must be (B,), one number an image; "
                         "squeeze it")
    return V.float()


def gaps(V_real, V_fake, t, T):
    """For the log: V_real - V_fake of the batch's images, summed for each t = 0..T, and their number, both (T+1,).

    Their ratio is the mean gap at t = 1..T (t = 0 has none); near 0 the critic is at chance.
    """
    one_hot = F.one_hot(t, T + 1).float()  # (B,) -> (B, T+1)
    return (V_real - V_fake).detach().float() @ one_hot, one_hot.sum(0)


# -- section 2.3 as printed: SIDDM trains with it, DDGAN with the row "js" below ---------------------------------


def gan_loss_D(V_real, V_fake):
    """Eq. (8) with D = sigmoid(V), on outputs (B,): D minimises E_q[-log D] + E_p[-log(1 - D)]."""
    V_real, V_fake = critic_values(V_real), critic_values(V_fake)
    minus_log_D_real = -F.logsigmoid(V_real)
    minus_log_1_minus_D_fake = -F.logsigmoid(-V_fake)  # 1 - sigmoid(V) = sigmoid(-V)
    return minus_log_D_real.mean() + minus_log_1_minus_D_fake.mean()


def gan_loss_G(V_fake):
    """Minus eq. (9) with D = sigmoid(V), on outputs (B,): G minimises E_p[-log D]."""
    return -F.logsigmoid(critic_values(V_fake)).mean()


# -- DDGAN: section 2.4, the table of divergences ---------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What the critic maximises: E_q[g(V)] - E_p[f_star_g(V)], eqs. (16) and (18) with T = g(V)."""

    g: Callable  # the activation g_f, increasing, from the real line into dom f*
    f_star_g: Callable  # f*(g_f(V)), in a form that keeps its digits for every V


@dataclass(frozen=True)
class FDivergence(Objective):
    """D_f(Q||P) = E_p[f(q/p)], eq. (11), of the data q and the model p, as a GAN: one row of the table.

    f is convex with f(1) = 0 and df is its derivative; f_star its conjugate, eq. (12), on domain = (low, high), the
    range of df. Training takes g and f_star_g alone; the others say which divergence it is, and tests/test_losses.py
    holds those two to them.
    """

    f: Callable
    df: Callable
    f_star: Callable
    domain: tuple


OBJECTIVES = {
    "js": FDivergence(  # twice the Jensen-Shannon divergence; the GAN of section 2.3 up to a constant
        f=lambda u: u * torch.log(u) - (u + 1) * torch.log((u + 1) / 2),
        df=lambda u: torch.log(2 * u / (u + 1)),
        f_star=lambda t: -torch.log(2 - torch.exp(t)),
        domain=(-math.inf, math.log(2)),
        g=lambda V: math.log(2) - F.softplus(-V),  # log(2 D) with D = sigmoid(V)
        f_star_g=lambda V: F.softplus(V) - math.log(2),  # -log(2 (1 - D))
    ),
    "hellinger": FDivergence(  # 2 H^2: eq. (19) has a factor 1/2 that the f of eq. (20) has not
        f=lambda u: (torch.sqrt(u) - 1) ** 2,
        df=lambda u: 1 - 1 / torch.sqrt(u),
        f_star=lambda t: t / (1 - t),
        domain=(-math.inf, 1.0),
        g=lambda V: -torch.expm1(-V),  # printed (20): 1 - exp(V), where large V means fake
        f_star_g=torch.expm1,  # (1 - exp(-V)) / exp(-V) = exp(V) - 1
    ),
    "reverse-kl": FDivergence(
        f=lambda u: -torch.log(u),
        df=lambda u: -1 / u,
        f_star=lambda t: -1 - torch.log(-t),
        domain=(-math.inf, 0.0),
        g=lambda V: -torch.exp(-V),  # printed (23): -exp(V), where large V means fake
        f_star_g=lambda V: V - 1,  # -1 - log exp(-V)
    ),
    "total-variation": FDivergence(  # eq. (26)
        f=lambda u: torch.abs(u - 1) / 2,
        df=lambda u: torch.sign(u - 1) / 2,
        f_star=lambda t: t,
        domain=(-0.5, 0.5),
        g=lambda V: torch.tanh(V) / 2,
        f_star_g=lambda V: torch.tanh(V) / 2,
    ),
    # v2 eq. (31): no f-divergence, but the same game with T = V, for critics that gradient_penalty keeps 1-Lipschitz
    "wasserstein": Objective(g=lambda V: V, f_star_g=lambda V: V),
    "kl": FDivergence(  # this and the next: Nowozin et al. 2016, Tables 1 and 6
        f=lambda u: u * torch.log(u),
        df=lambda u: 1 + torch.log(u),
        f_star=lambda t: torch.exp(t - 1),
        domain=(-math.inf, math.inf),
        g=lambda V: V,
        f_star_g=lambda V: torch.exp(V - 1),
    ),
    "pearson": FDivergence(  # f on the whole line: on u >= 0 alone f* is flat below t = -2, and D cannot come back
        f=lambda u: (u - 1) ** 2,
        df=lambda u: 2 * (u - 1),
        f_star=lambda t: t**2 / 4 + t,
        domain=(-math.inf, math.inf),
        g=lambda V: V,
        f_star_g=lambda V: V**2 / 4 + V,
    ),
}


# -- DDGAN: what follows from a row ---------------------------------------------------------------------------


def bound(V_real, V_fake, objective):
    """Eqs. (16), (18): E_q[T] - E_p[f*(T)] with T = g_f(V) on outputs (B,), (B,).

    A lower bound of D_f(q||p) where each V is of one pair; one that sees four, as Discriminator's, may exceed it.
    """
    return objective.g(critic_values(V_real)).mean() - objective.f_star_g(critic_values(V_fake)).mean()


def discriminator_loss(V_real, V_fake, objective):
    """Minus the bound, eqs. (21), (24), (27), v2 (31); for js it is (8) less 2 log 2."""
    return -bound(V_real, V_fake, objective)


def minimax_loss(V_fake, objective):
    """G's part of the bound, which it minimises: -E_p[f*(g_f(V))], the second terms of (21), (24), (27), v2 (31)."""
    return -objective.f_star_g(critic_values(V_fake)).mean()


def non_saturating_loss(V_fake, objective):
    """G maximises E_p[g_f(V)] instead (Nowozin et al. 2016, sec. 3.2); for js it is minus (9), less log 2."""
    return -objective.g(critic_values(V_fake)).mean()


GENERATOR_LOSSES = {"minimax": minimax_loss, "non-saturating": non_saturating_loss}


def r1_penalty(D, x_prev, x_t, t):
    """R1: E_q ||grad_{x_{t-1}} V(x_{t-1}, x_t, t)||^2 on real pairs (Mescheder et al. 2018, eq. (9)).

    The caller multiplies by gamma/2, and by k if it is added only every k-th step (Karras et al. 2020).
    """
    return gradient_norm(D, x_prev, x_t, t).square().mean()


def gradient_penalty(D, x_prev, x_prev_fake, x_t, t):
    """E (||grad V|| - 1)^2 between real and fake x_{t-1} at fixed (x_t, t): K = 1 in v2 (31).

    Gulrajani et al. 2017, eq. (3).
    """
    u = torch.rand(len(x_prev), *[1] * (x_prev.dim() - 1), device=x_prev.device)  # (B, 1, ..., 1)
    return (gradient_norm(D, u * x_prev + (1 - u) * x_prev_fake, x_t, t) - 1).square().mean()


def gradient_norm(D, x_prev, x_t, t):
    """||grad_{x_{t-1}} V(x_{t-1}, x_t, t)|| for each of the batch, (B, ...) -> (B,), differentiable in D's weights.

    Discriminator compares images four by four, so its V depends on three neighbours too: this is the gradient of the
    sum of all V.
    """
    x_prev = x_prev.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(x_prev, x_t, t).float().sum(), x_prev, create_graph=True)
    return gradient.flatten(1).norm(dim=1)  # (B, ...) -> (B,)


def energy_score(x_0, x_0_fake, x_0_fake_2):
    """E ||x_0 - g|| - 1/2 E ||g - g'||, norms over sqrt(dimension): the energy score, Gneiting, Raftery 2007, eq. (22).

    Ours here. x_0 ~ q(x_0 | x_t) and two draws g, g' = G(x_t, z, t), G(x_t, z', t) for each x_t, all (B, ...). A
    strictly proper scoring rule: it is smallest only where g is distributed as x_0 is, given x_t. A G that ignores z
    forgoes the second term.
    """
    def distance(a, b):
        return (a - b).flatten(1).norm(dim=1) / a[0].numel() ** 0.5  # (B, ...) -> (B,); where a = b its gradient is 0

    to_data = (distance(x_0, x_0_fake) + distance(x_0, x_0_fake_2)) / 2
    return (to_data - distance(x_0_fake, x_0_fake_2) / 2).mean()


# -- DDPM: section 2.1, eq. (6) and the other terms of the bound (5) ----------------------------------------


def weighted_loss(eps, eps_theta, t, diffusion, variance="beta_tilde"):
    """Eq. (6): KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)) for each x_t, in nats: (B, ...) -> (B,).

    p_theta has the posterior's variance, beta_t with variance="beta", or that of each pixel, a tensor (B, ...). Defined
    for t >= 2; at t = 1 the posterior's is 0, the result NaN or infinite, and the bound's term another: decoder_nll.
    """
    tables = diffusion.beta, diffusion.alpha, diffusion.beta_tilde, diffusion.one_minus_alpha_bar
    beta, alpha, beta_tilde, one_minus_alpha_bar = (at(table, t, like=eps) for table in tables)
    sigma_squared = at(getattr(diffusion, variance), t, like=eps) if isinstance(variance, str) else variance
    # printed: beta^2 / (2 beta-bar_t (1 - beta) (1 - alpha_bar_t)); its beta-bar_t lacks the factor beta_t
    weight = beta**2 / (2 * sigma_squared * alpha * one_minus_alpha_bar)
    ratio = beta_tilde / sigma_squared
    of_variances = (ratio - 1 - torch.log(ratio)) / 2  # 0 for the posterior's own
    return (weight * (eps - eps_theta.float()).square() + of_variances).flatten(1).sum(1)  # (B, ...) -> (B,)


def decoder_nll(x_0, mean, variance):
    """L_0 = -log p_theta(x_0 | x_1) of images on 256 levels in [-1, 1], in nats: (B, ...) -> (B,), Ho et al. 2020 (13).

    A level has what N(mean, variance) holds within 1/255 of it, the lowest and the highest also what is beyond.
    """
    x_0, mean, sigma = x_0.double(), mean.double(), variance.double() ** 0.5
    # ndtr: the distribution function of N(0, 1)
    below = torch.where(x_0 < -0.999, 0, torch.special.ndtr((x_0 - 1 / 255 - mean) / sigma))
    above = torch.where(x_0 > 0.999, 1, torch.special.ndtr((x_0 + 1 / 255 - mean) / sigma))
    return -torch.log((above - below).clamp(min=1e-12)).flatten(1).sum(1)  # no log 0; as Ho et al.'s code


def prior_kl(x_0, diffusion):
    """L_T = KL(q(x_T | x_0) || N(0, I)) in nats, where nothing is learned: (B, ...) -> (B,). Ho et al. 2020, (5)."""
    alpha_bar, variance = diffusion.alpha_bar[-1], diffusion.one_minus_alpha_bar[-1]
    return 0.5 * (alpha_bar * x_0**2 + variance - 1 - torch.log(variance)).flatten(1).sum(1)


# -- SIDDM: Xu et al. 2023 -----------------------------------------------------------------------------------------


def forward_nll(x_t, x_prev, t, diffusion):
    """-log N(x_t; sqrt(alpha_t) x_{t-1}, beta_t I) up to a constant, in nats a dimension. Xu et al. 2023, (8)-(13).

    x_t and x_prev (x_{t-1}) are (B, ...). With x_{t-1} from p_theta it is the cross-entropy with the forward diffusion
    q(x_t | x_{t-1}); with C_psi(x_{t-1}, t) in its place, minus the largest log-likelihood that C_psi reaches. Their
    difference is the AFD term: with the best C_psi
    E ||E[x_t | x_{t-1}] - sqrt(alpha_t) x_{t-1}||^2 / (2 beta_t) <= KL(p_theta(x_t | x_{t-1}) || q(x_t | x_{t-1})).
    """
    alpha, beta = (at(table, t, like=x_t) for table in (diffusion.alpha, diffusion.beta))  # (B, 1, ..., 1)
    return ((x_t - torch.sqrt(alpha) * x_prev.float()).square() / (2 * beta)).mean()
