"""Objectives: L_simple and eq. (6) for DDPM; the non-saturating GAN, eqs. (8) and (9), and R1 for DDGAN.

A critic's output V is a logit and larger V means *real*, for every objective. Outputs have shape (B,), losses
are scalars, and everything is computed in float32 whatever the networks ran in.
"""

import torch
import torch.nn.functional as F

# -- DDPM: sections 2.1 and 3.1 -------------------------------------------------------------------------------


def simple_loss(eps, eps_theta):
    """L_simple, Ho et al. 2020, eq. (14), divided by the dimension: the mean of (eps - eps_theta)^2 over everything."""
    return F.mse_loss(eps_theta.float(), eps)


def weighted_loss(eps, eps_theta, t, diffusion):
    """Eq. (6): KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)) for each x_t, in nats: (B, ...) -> (B,).

    p_theta has the posterior's variance. Defined for t >= 2; at t = 1 that variance is 0, the bound has another
    term there (L_0), and the result is infinite.
    """
    # printed: beta^2 / (2 beta-bar_t (1 - beta) (1 - alpha_bar_t)); ERRATA: beta-bar_t lacks the factor beta_t
    beta, beta_tilde, alpha = diffusion.beta[t], diffusion.beta_tilde[t], diffusion.alpha[t]
    weight = beta**2 / (2 * beta_tilde * alpha * diffusion.one_minus_alpha_bar[t])
    return weight * (eps - eps_theta.float()).square().flatten(1).sum(1)  # (B, ...) -> (B,)


# -- DDGAN: section 2.3 ---------------------------------------------------------------------------------------
# D = sigmoid(V), so that -log D = softplus(-V) and -log(1 - D) = softplus(V), finite for every V.


def discriminator_loss(V_real, V_fake):
    """Eq. (8): E_q[-log D] + E_p[-log(1 - D)] on logits (B,), (B,)."""
    return F.softplus(-V_real.float()).mean() + F.softplus(V_fake.float()).mean()


def generator_loss(V_fake):
    """Eq. (9) as a loss: -E_p[log D] on logits (B,)."""
    return F.softplus(-V_fake.float()).mean()


def r1_penalty(D, x_prev, x_t, t):
    """R1: E_q ||grad_{x_{t-1}} V(x_{t-1}, x_t, t)||^2 on real pairs (Mescheder et al. 2018, eq. (9)).

    The caller multiplies by gamma/2, and by k if it is added only every k-th step (Karras et al. 2020).
    """
    x_prev = x_prev.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(x_prev, x_t, t).float().sum(), x_prev, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()  # (B, ...) -> (B,) -> ()
