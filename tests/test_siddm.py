"""Claims of Xu et al. 2023 about losses.forward_nll, the AFD term."""

import pytest
import torch

from diffusion import Diffusion
from losses import forward_nll


class Gaussian:
    """One dimension, x_0 ~ N(0, 0.3^2), t = 2 of 3, and p_theta(x' | x_t) = N(a x_t + b, u) for x_t ~ q(x_t)."""

    diffusion = Diffusion(3, "cosine")
    t = torch.tensor([2])
    alpha, beta = diffusion.alpha[2].item(), diffusion.beta[2].item()
    var_prev = diffusion.alpha_bar[1].item() * 0.3**2 + diffusion.one_minus_alpha_bar[1].item()  # of q(x_{t-1})
    var_t = alpha * var_prev + beta  # of q(x_t)
    a_true, u_true = alpha**0.5 * var_prev / var_t, var_prev * beta / var_t  # q(x_{t-1} | x_t) by Bayes' rule

    def __init__(self, a, b, u):
        self.a, self.b, self.u = a, b, u
        var = a**2 * self.var_t + u  # of x'
        self.slope = a * self.var_t / var  # E[x_t | x'] = slope (x' - b)
        self.var_given = self.var_t * u / var  # of x_t given x'
        offset = -self.slope * b
        # E[x_t | x'] - sqrt(alpha) x' = (slope - sqrt(alpha)) x' + offset, whose mean square is
        square = ((self.slope - self.alpha**0.5) ** 2 * (var + b**2)
                  + 2 * (self.slope - self.alpha**0.5) * offset * b + offset**2)
        self.bracket = square / (2 * self.beta)
        ratio = torch.tensor(self.var_given / self.beta)
        self.kl = ((ratio - 1 - ratio.log()) / 2).item() + self.bracket

    def sampled_bracket(self, n=1_000_000):
        x_t = self.var_t**0.5 * torch.randn(n)
        x_prev = self.a * x_t + self.b + self.u**0.5 * torch.randn(n)
        best = self.slope * (x_prev - self.b) / self.alpha**0.5  # sqrt(alpha) C = E[x_t | x']
        t = self.t.expand(n)
        return (forward_nll(x_t, x_prev, t, self.diffusion) - forward_nll(x_t, best, t, self.diffusion)).item()


def test_the_afd_term_vanishes_at_the_true_posterior_where_c_is_the_identity():
    true = Gaussian(Gaussian.a_true, 0.0, Gaussian.u_true)
    assert true.slope == pytest.approx(true.alpha**0.5, rel=1e-5)
    assert true.sampled_bracket() == pytest.approx(0, abs=1e-5) and true.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("a", "b", "u"), [(1, 0, 2), (1, 0, 0.5), (1, 0, 0.1), (1, 0.5, 1), (0.5, 0, 1), (0, 0, 1)])
def test_the_afd_term_is_the_value_derived_and_no_more_than_the_kl(a, b, u):
    wrong = Gaussian(a * Gaussian.a_true, b, u * Gaussian.u_true)
    # 3 %: a million samples, and the term is a difference of two averages of squares
    assert wrong.sampled_bracket() == pytest.approx(wrong.bracket, rel=0.03)
    assert 0 < wrong.bracket <= wrong.kl

