"""Claims of Xu et al. 2023 about losses.forward_nll, unet.Critic and train_siddm.py."""

import pytest
import torch

import train_ddgan
import train_siddm
from diffusion import Diffusion
from losses import forward_nll


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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


class Spy(torch.nn.Module):
    """A linear network on points that keeps what it was given and what came out."""

    def __init__(self, c_in, sizes):
        super().__init__()
        self.layer, self.sizes, self.calls = torch.nn.Linear(c_in, sum(sizes)), sizes, []

    def forward(self, *inputs):
        outputs = self.layer(torch.cat([x.float().reshape(len(x), -1) for x in inputs], 1)).split(self.sizes, 1)
        for output in outputs:
            if output.requires_grad:
                output.retain_grad()
        self.calls.append((inputs, outputs))
        return outputs if len(outputs) > 1 else outputs[0]


class Critic(Spy):
    def forward(self, *inputs):
        V, *rest = super().forward(*inputs) if len(self.sizes) > 1 else [super().forward(*inputs)]
        return (V.squeeze(1), *rest) if rest else V.squeeze(1)


def one_step(afd=1.0, reg=1.0, gan=1.0, seed=0):
    torch.manual_seed(seed)
    G, D = Spy(2 + 3 + 1, [2]), Critic(2 + 1, [1, 2, 2])
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
    train_siddm.train_step(G, D, *optimizers, torch.randn(8, 2), Diffusion(4, "cosine"), z_dim=3,
                           afd=afd, reg=reg, gan=gan)
    return G, D


def test_the_critic_does_not_see_x_t_in_siddm_and_does_in_ddgan():
    G, D = one_step()
    (x_t, _, t), _ = G.calls[0]
    for inputs, _ in D.calls:
        assert len(inputs) == 2 and inputs[0].shape[1:] == (2,) and (inputs[1][:8] == t).all()
        assert not any(torch.equal(x, x_t) for x in inputs[0].split(8))
    G, D = Spy(2 + 3 + 1, [2]), Critic(2 + 2 + 1, [1])
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
    train_ddgan.train_step(G, D, *optimizers, torch.randn(8, 2), Diffusion(4), z_dim=3)
    (x_t, _, _), _ = G.calls[0]
    assert all(torch.equal(x, x_t) for inputs, _ in D.calls for x in inputs[1].split(8))


def test_without_the_adversarial_losses_neither_network_learns_from_V():
    _, D = one_step(gan=0.0)
    assert all(outputs[0].grad is None or outputs[0].grad.eq(0).all() for _, outputs in D.calls)
    assert D.calls[0][1][1].grad.ne(0).any()  # C_psi goes on


def test_the_regulariser_never_sees_generated_data_and_c_never_real():
    _, D = one_step()
    V, C, x_0 = D.calls[0][1]  # real in the first half of the batch, generated in the second
    assert V.grad.ne(0).all()
    assert C.grad[:8].eq(0).all() and C.grad[8:].ne(0).any()
    assert x_0.grad[:8].ne(0).all() and x_0.grad[8:].eq(0).all()
    assert D.calls[1][1][2].grad is None or D.calls[1][1][2].grad.eq(0).all()  # nor does G learn from it


def test_the_loss_of_c_gives_g_no_gradient_and_the_afd_term_gives_c_none():
    """The second by D's gradients, which a larger AFD weight leaves alone; the first by G's, which C's loss does."""
    (G, D), (G_5, D_5) = one_step(afd=1.0), one_step(afd=5.0)
    for p, p_5 in zip(D.parameters(), D_5.parameters()):
        assert torch.equal(p.grad, p_5.grad) and p.grad.any()
    assert not torch.equal(G.layer.weight.grad, G_5.layer.weight.grad)
    assert not D.calls[0][0][0].requires_grad  # what D and C learn from is cut off from G
    (G_0, _), (G_0_reg, _) = one_step(afd=0.0), one_step(afd=0.0, reg=9.0)
    assert torch.equal(G_0.layer.weight.grad, G_0_reg.layer.weight.grad)
