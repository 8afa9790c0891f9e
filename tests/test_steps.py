"""What one training step computes, by networks that keep what they are given: train_ddpm, train_ddgan, train_siddm."""

import math
import runpy

import pytest
import torch
import torch.nn.functional as F
from conftest import HOME

import train_ddgan
import train_ddpm
import train_siddm
from diffusion import Diffusion
from losses import GENERATOR_LOSSES, OBJECTIVES, discriminator_loss, forward_nll
from model import PREDICTIONS

ablation = runpy.run_path(str(HOME / "experiments/ablation.py"))


# -- DDPM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("loss", ["simple", "weighted"])
def test_a_perfect_network_has_no_loss_and_one_that_says_nothing_its_targets_square(predict, loss):
    x_0, process, zero = torch.randn(500, 2), Diffusion(6), torch.zeros(1, requires_grad=True)
    perfect = {"eps": lambda x_t, t: process.eps_from_x_0(x_t, x_0, t), "x_0": lambda x_t, t: x_0,
               "mean": lambda x_t, t: process.posterior(x_0, x_t, t)[0]}[predict]
    optimizer = torch.optim.SGD([zero], lr=0.0)

    def of(network):
        values = [ablation["train_step"](network, optimizer, x_0, process, predict, loss)["loss"].item()]
        if (predict, loss) == ("eps", "simple"):
            values.append(train_ddpm.train_step(network, optimizer, x_0, process)["loss"].item())
        return values

    assert max(of(lambda x_t, t: perfect(x_t, t) + zero)) < 1e-6
    if loss == "simple" and predict != "mean":  # E eps^2 = E x_0^2 = 1, of 1,000 numbers
        assert all(value == pytest.approx(1, abs=0.2) for value in of(lambda x_t, t: 0 * x_t + zero))


# -- DDGAN and SIDDM ------------------------------------------------------------------------------------------


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


class Constant(Spy):
    """A G that knows x_0."""

    def forward(self, *inputs):
        return 0 * super().forward(*inputs) + 0.3


def ddgan_step(G=None, x_0=None, T=4, **options):
    torch.manual_seed(0)
    G, D = G or Spy(2 + 3 + 1, [2]), Critic(2 + 2 + 1, [1])
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
    log = train_ddgan.train_step(G, D, *optimizers, torch.randn(8, 2) if x_0 is None else x_0, Diffusion(T), z_dim=3,
                                 **options)
    return G, D, log


def siddm_step(x_0=None, **weights):
    torch.manual_seed(0)
    G, D = Spy(2 + 3 + 1, [2]), Critic(2 + 1, [1, 2, 2])
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
    log = train_siddm.train_step(G, D, *optimizers, torch.randn(8, 2) if x_0 is None else x_0,
                                 Diffusion(4, "cosine"), z_dim=3, **weights)
    return G, D, log


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("generator", GENERATOR_LOSSES)
def test_ddgans_losses_are_the_objectives_of_what_d_says_of_real_and_fake(name, generator):
    objective, generator_loss = OBJECTIVES[name], GENERATOR_LOSSES[generator]
    _, D, log = ddgan_step(objective=objective, generator_loss=generator_loss)
    (_, (V,)), (_, (V_new,)) = D.calls
    assert log["loss_D"].item() == pytest.approx(discriminator_loss(*V.squeeze(1).chunk(2), objective).item())
    assert log["loss_G"].item() == pytest.approx(generator_loss(V_new.squeeze(1), objective).item())


@pytest.mark.parametrize("step", [ddgan_step, siddm_step])
def test_gs_half_of_a_step_leaves_d_as_it_was(step, monkeypatch):
    """Whether or not it comes to its end: a D left frozen would skip its next updates in silence."""
    def stop(*args):
        raise KeyboardInterrupt

    G, D, _ = step()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_siddm, "gan_loss_G", stop)
        of_D = []
        patch.setattr(torch.optim.SGD, "step", lambda optimizer: of_D.extend(optimizer.param_groups[0]["params"]))
        step(**({"generator_loss": stop} if step is ddgan_step else {}))
    for p, stopped in zip(D.parameters(), of_D, strict=True):
        assert stopped.requires_grad and torch.equal(p.grad, stopped.grad)
    assert all(p.grad.abs().sum() > 0 for p in G.parameters())


def test_drift_pulls_every_output_of_ddgans_d_to_0():
    V, V_drift = (ddgan_step(drift=drift)[1].calls[0][1][0] for drift in (0.0, 3.0))
    torch.testing.assert_close(V_drift.grad - V.grad, 3 * 2 * V.detach() / len(V))  # of 3 mean V^2


def test_real_and_fake_pairs_are_one_distribution_where_g_knows_x_0():
    n = 100_000
    _, D, _ = ddgan_step(Constant(2 + 3 + 1, [2]), torch.full((n, 2), 0.3), T=10)
    x_prev, x_t, t = D.calls[0][0]
    real, fake = (torch.cat([x_prev[:, :1], x_t[:, :1]], dim=1)[part] for part in (slice(n), slice(n, 2 * n)))
    for step in range(1, 11):
        at_t = t[:n] == step
        a, b = real[at_t], fake[at_t]
        # five standard errors of n/10 pairs of variance 1 at most; at t = 5 the two of a pair have a covariance of 0.5
        torch.testing.assert_close(a.mean(0), b.mean(0), rtol=0, atol=5 * math.sqrt(2 / (n / 10)))
        torch.testing.assert_close(a.T.cov(), b.T.cov(), rtol=0, atol=5 * math.sqrt(4 / (n / 10)))
    assert torch.equal(fake[t[:n] == 1][:, 0], torch.full(((t[:n] == 1).sum(),), 0.3))  # (10) at t = 1


def test_the_critic_does_not_see_x_t_in_siddm_and_does_in_ddgan():
    G, D, _ = siddm_step()
    (x_t, _, t), _ = G.calls[0]
    for inputs, _ in D.calls:
        assert len(inputs) == 2 and inputs[0].shape[1:] == (2,) and (inputs[1][:8] == t).all()
        assert not any(torch.equal(x, x_t) for x in inputs[0].split(8))
    G, D, _ = ddgan_step()
    (x_t, _, _), _ = G.calls[0]
    assert all(torch.equal(x, x_t) for inputs, _ in D.calls for x in inputs[1].split(8))


def test_siddms_afd_term_and_regulariser_are_those_of_what_the_networks_say():
    x_0, diffusion = torch.randn(8, 2), Diffusion(4, "cosine")
    G, D, log = siddm_step(x_0)
    (x_t, _, t), _ = G.calls[0]
    (x_prev_fake, _), (_, C_new, _) = D.calls[1]
    afd = forward_nll(x_t, x_prev_fake, t, diffusion) - forward_nll(x_t, C_new, t, diffusion)
    assert log["afd"].item() == pytest.approx(afd.item(), rel=1e-5)
    x_0_of_real = D.calls[0][1][2][:8]
    assert log["regulariser"].item() == pytest.approx(F.mse_loss(x_0_of_real, x_0).item(), rel=1e-5)


def test_without_the_adversarial_losses_neither_of_siddms_networks_learns_from_V():
    _, D, _ = siddm_step(gan=0.0)
    assert all(outputs[0].grad is None or outputs[0].grad.eq(0).all() for _, outputs in D.calls)
    assert D.calls[0][1][1].grad.ne(0).any()  # C_psi goes on


def test_siddms_regulariser_never_sees_generated_data_and_c_never_real():
    _, D, _ = siddm_step()
    V, C, x_0 = D.calls[0][1]  # real in the first half of the batch, generated in the second
    assert V.grad.ne(0).all()
    assert C.grad[:8].eq(0).all() and C.grad[8:].ne(0).any()
    assert x_0.grad[:8].ne(0).all() and x_0.grad[8:].eq(0).all()
    assert D.calls[1][1][2].grad is None or D.calls[1][1][2].grad.eq(0).all()  # nor does G learn from it


def test_the_loss_of_c_gives_siddms_g_no_gradient_and_the_afd_term_gives_c_none():
    """The second by D's gradients, which a larger AFD weight leaves alone; the first by G's, which C's loss does."""
    (G, D, _), (G_5, D_5, _) = siddm_step(afd=1.0), siddm_step(afd=5.0)
    for p, p_5 in zip(D.parameters(), D_5.parameters()):
        assert torch.equal(p.grad, p_5.grad) and p.grad.any()
    assert not torch.equal(G.layer.weight.grad, G_5.layer.weight.grad)
    assert not D.calls[0][0][0].requires_grad  # what D and C learn from is cut off from G
    (G_0, _, _), (G_0_reg, _, _) = siddm_step(afd=0.0), siddm_step(afd=0.0, reg=9.0)
    assert torch.equal(G_0.layer.weight.grad, G_0_reg.layer.weight.grad)


@pytest.mark.parametrize(("objective", "T", "r1"), [
    ("js", 1, 0.5),
    ("js", 2, 0.1),
    ("reverse-kl", 2, 0.5),
    ("hellinger", 3, 0.5),
    ("hellinger", 4, 0.1),
    ("js", 10, 0.0064),
    ("wasserstein", 1, 0),
    ("wasserstein", 10, 0)])
def test_r1_is_larger_for_few_steps_and_falls_as_t_cubed_beyond_four(objective, T, r1):
    assert train_ddgan.recipe(objective, T)["r1"] == r1
