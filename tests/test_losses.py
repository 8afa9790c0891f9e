"""Claims of sections 2.1, 2.3 and 2.4 about losses.py."""

import contextlib
import dataclasses
import inspect
import math
import re
import runpy
import sys

import pytest
import torch
from conftest import HOME
from torch.distributions import Normal, kl_divergence

import diffusion as diffusion_module
import losses
import train_ddgan
import train_ddpm
import train_siddm
from diffusion import Diffusion, at
from losses import (
    GENERATOR_LOSSES,
    OBJECTIVES,
    FDivergence,
    bound,
    decoder_nll,
    discriminator_loss,
    gan_loss_D,
    gan_loss_G,
    gaps,
    gradient_penalty,
    minimax_loss,
    non_saturating_loss,
    prior_kl,
    r1_penalty,
    weighted_loss,
)

JS, HELLINGER, REVERSE_KL, TOTAL_VARIATION, WASSERSTEIN, KL, PEARSON = (
    OBJECTIVES[name] for name in ("js", "hellinger", "reverse-kl", "total-variation", "wasserstein", "kl", "pearson"))
BOUND = runpy.run_path(str(HOME / "experiments/bound.py"))
NAMES = {row: name for name, row in OBJECTIVES.items()}
ROWS = [row for row in OBJECTIVES.values() if isinstance(row, FDivergence)]
each_row = pytest.mark.parametrize("row", ROWS, ids=NAMES.get)


@pytest.mark.parametrize("T, schedule, variance", [
    (2, "vp", "beta_tilde"),
    (4, "vp", "beta_tilde"),
    (1000, "vp", "beta_tilde"),
    (10, "cosine", "beta_tilde"),
    (4, "vp", "beta"),
    (1000, "vp", "beta")])
def test_the_weighted_loss_6_is_the_kl_of_5(T, schedule, variance):
    diffusion = Diffusion(T, schedule)
    t = torch.randint(2, T + 1, (64,))
    x_0, eps, eps_theta = torch.randn(64, 1, 3, 3), torch.randn(64, 1, 3, 3), torch.randn(64, 1, 3, 3)
    x_t = diffusion.q_sample(x_0, t, eps)
    mean, posterior_variance = diffusion.posterior(x_0, x_t, t)
    mean_theta, _ = diffusion.posterior(diffusion.x_0_from_eps(x_t, eps_theta, t), x_t, t)
    std, sigma = posterior_variance.double().sqrt(), at(getattr(diffusion, variance), t, like=x_t).double().sqrt()
    kl = kl_divergence(Normal(mean.double(), std), Normal(mean_theta.double(), sigma)).flatten(1).sum(1)
    # 1e-2: at T = 1000 the two means differ in their last three float32 digits
    torch.testing.assert_close(weighted_loss(eps, eps_theta, t, diffusion, variance).double(), kl, rtol=1e-2, atol=0)


LEVELS = torch.arange(256).double() / 127.5 - 1


@pytest.mark.parametrize("mean, std", [(0.0, 0.01), (0.3, 0.2), (-1.0, 0.05), (1.2, 1.0)])
def test_the_decoder_of_l_0_shares_1_among_the_256_levels_as_its_normal_does(mean, std):
    p = torch.exp(-decoder_nll(LEVELS[:, None], torch.tensor([mean]), torch.tensor(std) ** 2))
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    inner = slice(1, 255)  # all but the two ends, which have the tails as well
    density = torch.exp(Normal(mean, std).log_prob(LEVELS)) * 2 / 255
    # wide against a level: the integral is the density's, by the rule of the midpoint, to width^2 / (24 std^2)
    if std >= 0.05:
        assert torch.allclose(p[inner], density[inner], rtol=0.02, atol=1e-6)


def test_the_prior_term_l_t_is_the_kl_with_a_standard_normal():
    diffusion, x_0 = Diffusion(4).strided(1, end=1), 2 * torch.rand(5, 3) - 1  # it ends at alpha_bar = 0.52
    q = Normal(diffusion.alpha_bar[-1].sqrt() * x_0, diffusion.one_minus_alpha_bar[-1].sqrt())
    torch.testing.assert_close(prior_kl(x_0, diffusion), kl_divergence(q, Normal(0, 1)).sum(1), rtol=1e-5, atol=0)


def test_the_bounds_terms_have_closed_forms_for_gaussian_data_and_the_exact_denoiser():
    s, n, diffusion = 0.2, 2000, Diffusion(1000)
    x_0 = ((s * torch.randn(n, 1)).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1

    def eps_theta(x_t, t):  # E[eps | x_t]
        return (diffusion.one_minus_alpha_bar[t].sqrt() * x_t
                / (diffusion.alpha_bar[t] * s**2 + diffusion.one_minus_alpha_bar[t]))

    class Exact:  # what bound_terms needs of a Model
        T, learned, diffusion, autocast = 1000, False, Diffusion(1000), contextlib.nullcontext

        def eps_and_v(self, x_t, t):
            return eps_theta(x_t, t[0]), None

    terms = BOUND["bound_terms"](Exact(), x_0).mean(2) * math.log(2)  # bits a dimension, of one dimension, as nats
    for step in range(2, 1001):
        # Var[eps | x_t] = alpha_bar s^2 / (alpha_bar s^2 + 1 - alpha_bar) times the weight in (6)
        alpha_bar, variance = diffusion.alpha_bar[step].item(), diffusion.one_minus_alpha_bar[step].item()
        beta, beta_tilde = diffusion.beta[step].item(), diffusion.beta_tilde[step].item()
        exact = beta**2 / (2 * beta_tilde * (1 - beta) * variance) * alpha_bar * s**2 / (alpha_bar * s**2 + variance)
        assert terms[step - 1, 0].item() == pytest.approx(exact, rel=0.2)  # 6 sigma
    # With sigma^2 = beta_t, right for steps much shorter than s, the bound is nearly tight
    entropy = math.log(s * math.sqrt(2 * math.pi * math.e) * 255 / 2)  # of the 256 levels, in nats
    assert entropy - 0.1 < terms[:, 1].sum() < entropy + 0.2  # 0.1: the draws' own noise


def test_a_learned_variance_lies_between_the_two_and_its_kl_is_the_normals():
    diffusion, t = Diffusion(10), torch.tensor([2, 5, 10])
    x_0, eps, eps_theta, v = torch.rand(3, 6) - 0.5, torch.randn(3, 6), torch.randn(3, 6), torch.rand(3, 6)
    for name, end in (("beta_tilde", 0.0), ("beta", 1.0)):
        variance = diffusion.learned_variance(torch.full_like(v, end), t)
        torch.testing.assert_close(variance, getattr(diffusion, name)[t][:, None].expand(3, 6), rtol=1e-5, atol=0)
        torch.testing.assert_close(weighted_loss(eps, eps_theta, t, diffusion, variance),
                                   weighted_loss(eps, eps_theta, t, diffusion, name))
    assert (diffusion.learned_variance(torch.zeros(1, 1), torch.tensor([1])).item()
            == pytest.approx(diffusion.beta_tilde[2].item()))
    x_t = diffusion.q_sample(x_0, t, eps)
    (mean, tilde), variance = diffusion.posterior(x_0, x_t, t), diffusion.learned_variance(v, t)
    mean_theta, _ = diffusion.posterior(diffusion.x_0_from_eps(x_t, eps_theta, t), x_t, t)
    exact = kl_divergence(Normal(mean, tilde.sqrt()), Normal(mean_theta, variance.sqrt())).sum(1)
    torch.testing.assert_close(weighted_loss(eps, eps_theta, t, diffusion, variance), exact, rtol=1e-3, atol=1e-3)


# -- the table of section 2.4 ---------------------------------------------------------------------------------


def grid_u(row):
    """A fine grid of u = q/p in float64; all of Pearson's f is a parabola, on the whole line."""
    u = torch.logspace(-6, 4, 20_001, dtype=torch.float64)
    return torch.cat([-u.flip(0), u]) if row is PEARSON else u


def grid_t(row, count):
    """Points in the domain of f*, away from where it is infinite."""
    low, high = row.domain
    return torch.linspace(max(low, -5.0), min(high - 0.05, 4.0) if row is not TOTAL_VARIATION else high, count,
                          dtype=torch.float64)


@each_row
def test_f_is_convex_with_f_of_1_equal_to_0_and_df_its_derivative(row):
    assert row.f(torch.tensor(1.0, dtype=torch.float64)).item() == 0
    u = torch.linspace(0.01, 5, 1000, dtype=torch.float64)
    assert (row.f(u[:-2]) - 2 * row.f(u[1:-1]) + row.f(u[2:]) > -1e-12).all()
    u = u[(u - 1).abs() > 1e-3].requires_grad_()  # total variation has a corner at 1
    torch.testing.assert_close(row.df(u), torch.autograd.grad(row.f(u).sum(), u)[0])


@each_row
def test_the_conjugate_is_the_supremum_12_and_its_conjugate_is_f_13(row):
    u, t = grid_u(row), grid_t(row, 30)
    supremum = torch.stack([(u * s - row.f(u)).max() for s in t])
    torch.testing.assert_close(supremum, row.f_star(t), rtol=1e-4, atol=1e-5)  # what the grid's own step leaves
    steps = torch.logspace(-6, 4, 20_001, dtype=torch.float64)
    low, high = row.domain
    t = high - steps if math.isfinite(high) else torch.cat([-steps.flip(0), steps])
    t = torch.cat([t[t > low], torch.tensor(row.domain, dtype=torch.float64)]) if row is TOTAL_VARIATION else t
    u = torch.logspace(-1.5, 1.5, 31, dtype=torch.float64)
    biconjugate = torch.stack([(v * t - row.f_star(t)).max() for v in u])
    torch.testing.assert_close(biconjugate, row.f(u), rtol=1e-4, atol=1e-5)


@each_row
def test_the_activation_rises_and_maps_the_real_line_into_the_domain_of_the_conjugate(row):
    V = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    T, (low, high) = row.g(V), row.domain
    # total variation's domain is closed; beyond 15 rounding may reach an open end, too
    may_touch = (V.abs() > 15) | (row is TOTAL_VARIATION)
    inside = ((T > low) & (T < high)) | (may_touch & (T >= low) & (T <= high))
    assert inside.all(), f"g(V) = {T[~inside]} for V = {V[~inside]} is not in {row.domain}"
    assert (T.diff() >= 0).all() and T[-1] > T[0]
    V = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    torch.testing.assert_close(row.f_star_g(V), row.f_star(row.g(V)))


@each_row
def test_the_conjugate_at_the_slope_is_the_legendre_transform(row):
    u = torch.logspace(-2, 2, 100, dtype=torch.float64) * 1.01
    torch.testing.assert_close(row.f_star(row.df(u)), u * row.df(u) - row.f(u))


@pytest.mark.parametrize("wrong", [
    {"f": lambda u: (torch.sqrt(u) - 1) ** 2 / 2},  # the factor of (19)
    {"df": lambda u: 1 - torch.sqrt(u)},
    {"f_star": lambda t: t / (1 + t)},
    {"g": lambda V: -torch.expm1(V)},  # the printed sign of V
    {"f_star_g": lambda V: torch.expm1(-V)},
    {"domain": (-math.inf, math.log(2))}], ids=lambda wrong: next(iter(wrong)))
def test_a_row_with_one_wrong_entry_is_noticed(wrong):
    row = dataclasses.replace(HELLINGER, **wrong)
    with pytest.raises(AssertionError):
        for holds in (test_f_is_convex_with_f_of_1_equal_to_0_and_df_its_derivative,
                      test_the_conjugate_is_the_supremum_12_and_its_conjugate_is_f_13,
                      test_the_activation_rises_and_maps_the_real_line_into_the_domain_of_the_conjugate,
                      test_the_conjugate_at_the_slope_is_the_legendre_transform):
            holds(row)


def cost(row, q, p):
    """D_f(Q||P), eq. (11), over points: p f(q/p), which is p f(0) where q is 0, and q lim f(u)/u where p is 0."""
    small, large = torch.tensor(1e-30, dtype=torch.float64), torch.tensor(1e30, dtype=torch.float64)
    # a logarithm has come to 69
    at_0, slope = (value.item() if value < 40 else math.inf for value in (row.f(small), row.f(large) / large))
    terms = [q_i * slope if p_i == 0 else p_i * at_0 if q_i == 0 else p_i * row.f(q_i / p_i).item()
             for q_i, p_i in zip(q, p)]
    return sum(terms)


@each_row
def test_what_a_dropped_and_an_invented_mode_cost(row):
    """The table of PAPER.md, section 2.4: a mode with a tenth of the mass is missing in the model, or in the data."""
    whole, part = torch.tensor([0.9, 0.1]).double(), torch.tensor([1.0, 0.0]).double()
    page = (HOME / "PAPER.md").read_text(encoding="utf-8")
    printed = {name: (float(a.replace("∞", "inf")), float(b.replace("∞", "inf")))
               for name, a, b in re.findall(r"^\| ([a-z-]+) \| ([\d.∞]+) \| ([\d.∞]+) \|$", page, re.MULTILINE)}
    assert len(printed) >= 6
    if NAMES[row] not in printed:
        pytest.skip("a divergence of your own")
    dropped, invented = printed[NAMES[row]]
    assert cost(row, q=whole, p=part) == pytest.approx(dropped, abs=5e-4)
    assert cost(row, q=part, p=whole) == pytest.approx(invented, abs=5e-4)


def test_with_a_perfect_d_9_makes_g_minimise_a_softened_reverse_kl():
    q, theta = torch.rand(7).double().softmax(0), torch.randn(7).double().requires_grad_()

    def gradient(function):
        return torch.autograd.grad(function(theta.softmax(0)), theta)[0]

    p = theta.softmax(0).detach()
    V = torch.log(q / p)  # the best critic
    non_saturating = gradient(lambda p: sum(p_i * gan_loss_G(V_i[None]) for p_i, V_i in zip(p, V)))  # E_p of (9)'s loss
    minimax = gradient(lambda p: sum(p_i * minimax_loss(V_i[None], JS) for p_i, V_i in zip(p, V)))
    softened = gradient(lambda p: 2 * ((p + q) / 2 * torch.log((p + q) / 2 / q)).sum())
    two_js = gradient(lambda p: (p * torch.log(2 * p / (p + q)) + q * torch.log(2 * q / (p + q))).sum())
    torch.testing.assert_close(non_saturating, softened, rtol=1e-4, atol=1e-6)  # the losses are in float32
    torch.testing.assert_close(minimax, two_js, rtol=1e-4, atol=1e-6)
    assert (non_saturating - two_js).abs().max() > 0.01


X = torch.linspace(-12, 13, 5_001, dtype=torch.float64)
GAUSSIANS = [0.005 * Normal(mean, 1.0).log_prob(X).exp()
             for mean in (torch.tensor(1.0).double(), torch.tensor(0.0).double())]
DISCRETE = [torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.3, 0.6]).double()]
CLOSED_FORMS = {  # of N(1, 1) against N(0, 1)
    HELLINGER: 2 * (1 - math.exp(-1 / 8)),  # 2 H^2, not the H^2 of eq. (19)
    REVERSE_KL: 0.5,
    KL: 0.5,
    TOTAL_VARIATION: math.erf(1 / math.sqrt(8)),
    PEARSON: math.e - 1,
}


@each_row
@pytest.mark.parametrize("pair", [GAUSSIANS, DISCRETE], ids=["Gaussians", "discrete"])
def test_the_bound_16_is_tight_at_the_optimal_critic_17_and_lower_at_any_other(row, pair):
    q, p = pair

    def value(T):
        return (q * T - p * row.f_star(T)).sum()

    divergence = (p * row.f(q / p)).sum()
    best = row.df(q / p)
    assert value(best).item() == pytest.approx(divergence.item(), abs=1e-4)
    if pair is GAUSSIANS and row in CLOSED_FORMS:
        assert divergence.item() == pytest.approx(CLOSED_FORMS[row], abs=1e-4)
    low, high = row.domain
    others = []
    for _ in range(20):
        other = best + torch.randn(()).double() * torch.sin(torch.arange(len(q)).double() + torch.randn(()).double())
        other = other.clamp(low, high - (1e-3 if math.isfinite(high) and row is not TOTAL_VARIATION else 0))
        others.append(value(other).item())
    assert max(others) < divergence + 1e-12 and min(others) < divergence - 0.01


def small_critic(dimensions=1):
    return torch.nn.Sequential(torch.nn.Linear(dimensions, 32), torch.nn.SiLU(),
                               torch.nn.Linear(32, 1), torch.nn.Flatten(0))


@each_row
def test_a_small_critic_closes_the_gap_by_gradient_ascent(row):
    V = small_critic()
    optimizer = torch.optim.Adam(V.parameters(), lr=1e-2)
    for step in range(600):
        q, p = 1 + torch.randn(4096, 1), torch.randn(4096, 1)
        optimizer.zero_grad()
        discriminator_loss(V(q), V(p), row).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 600)
    q, p = GAUSSIANS
    with torch.no_grad():
        outputs = V(X[:, None].float()).double()
    reached = (q * row.g(outputs) - p * row.f_star_g(outputs)).sum().item()
    divergence = (p * row.f(q / p)).sum().item()
    assert 0.95 * divergence < reached < divergence + 1e-4


def test_the_printed_21_24_27_are_the_derived_bounds_up_to_the_sign_of_V_and_a_constant():
    V_q, V_p = torch.randn(1000, dtype=torch.float64).float(), torch.randn(1000, dtype=torch.float64).float()

    def printed_21(V_q, V_p):
        return (1 - V_q.exp()).mean() - (-V_p).exp().mean()

    def printed_24(V_q, V_p):
        return (-V_q.exp()).mean() + (1 + V_p).mean()

    def printed_27(V_q, V_p):
        return (V_q.tanh() / 2).mean() - (V_p.tanh() / 2).mean()

    close = {"rel": 1e-5, "abs": 1e-5}
    assert bound(V_q, V_p, HELLINGER).item() == pytest.approx(printed_21(-V_q, -V_p).item() + 1, **close)
    assert bound(V_q, V_p, REVERSE_KL).item() == pytest.approx(printed_24(-V_q, -V_p).item(), **close)
    assert bound(V_q, V_p, TOTAL_VARIATION).item() == pytest.approx(printed_27(V_q, V_p).item(), **close)


def test_the_row_js_is_the_non_saturating_gan_8_and_9_as_printed_up_to_constants():
    V_real, V_fake = 3 * torch.randn(1000), 3 * torch.randn(1000)
    D_real, D_fake = torch.sigmoid(V_real.double()), torch.sigmoid(V_fake.double())
    printed_8 = (-D_real.log().mean() - (1 - D_fake).log().mean()).item()
    assert gan_loss_D(V_real, V_fake).item() == pytest.approx(printed_8, rel=1e-5)
    assert gan_loss_G(V_fake).item() == pytest.approx(-D_fake.log().mean().item(), rel=1e-5)
    assert discriminator_loss(V_real, V_fake, JS).item() == pytest.approx(printed_8 - 2 * math.log(2), rel=1e-5)
    assert non_saturating_loss(V_fake, JS).item() == pytest.approx(-D_fake.log().mean().item() - math.log(2), rel=1e-5)
    assert minimax_loss(V_fake, JS).item() == pytest.approx((1 - D_fake).log().mean().item() + math.log(2), rel=1e-5)


def test_gaps_are_sums_and_counts_by_t():
    total, count = gaps(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.0, 0.5, 1.0]), torch.tensor([2, 2, 1]), T=3)
    assert total.tolist() == [0, 4, 2.5, 0] and count.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("row", OBJECTIVES.values(), ids=NAMES.get)
def test_gradients_are_finite_for_large_outputs_and_large_means_real(row):
    for dtype in (torch.float32, torch.bfloat16):  # as they come out of autocast
        V = torch.linspace(-50, 50, 101, dtype=dtype, requires_grad=True)
        for loss in (discriminator_loss(V, V, row), minimax_loss(V, row), non_saturating_loss(V, row)):
            (gradient,) = torch.autograd.grad(loss, V)
            assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()
    assert discriminator_loss(V[50:52] + 1, V[50:52], row) < discriminator_loss(V[50:52], V[50:52] + 1, row)
    assert non_saturating_loss(V + 1, row) < non_saturating_loss(V, row)


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 1), ()])
def test_a_critic_that_does_not_return_one_number_an_image_is_refused(shape):
    V, good = torch.zeros(shape), torch.zeros(4)
    for loss in (gan_loss_G, *(lambda V, f=f: f(V, JS) for f in GENERATOR_LOSSES.values()),
                 lambda V: gan_loss_D(V, good), lambda V: gan_loss_D(good, V),
                 lambda V: discriminator_loss(V, good, JS), lambda V: discriminator_loss(good, V, JS)):
        with pytest.raises(ValueError, match=r"must be \(B,\)"):
            loss(V)


def networks(d_out=1):
    """G(x_t, z, t), D(x_{t-1}, x_t, t), SIDDM's D(x_{t-1}, t) and eps_theta(x_t, t) in 2-D, with one optimizer each."""
    layers = [torch.nn.Linear(n, m) for n, m in ((2 + 3 + 1, 2), (2 + 2 + 1, 1), (2 + 1, 5), (2 + 1, 2))]

    def call(layer, *inputs):
        return layer(torch.cat([x.float().view(len(x), -1) for x in inputs], 1))

    class Network(torch.nn.Module):
        def __init__(self, layer, out):
            super().__init__()
            self.layer, self.out = layer, out

        def forward(self, *inputs):
            return self.out(call(self.layer, *inputs))

    outs = [lambda h: h, lambda h: h.squeeze(1) if d_out == 1 else h,
            lambda h: (h[:, 0], h[:, 1:3], h[:, 3:]), lambda h: h]
    made = [Network(layer, out) for layer, out in zip(layers, outs)]
    return made, [torch.optim.SGD(network.parameters(), lr=0.1) for network in made]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_with_a_critic_of_shape_b_1_is_refused_before_anything_is_trained(objective):
    (G, D, *_), (of_G, of_D, *_) = networks(d_out=0)
    before = [p.clone() for network in (G, D) for p in network.parameters()]
    with pytest.raises(ValueError, match=r"\(8, 1\): it must be \(B,\)"):
        train_ddgan.train_step(G, D, of_G, of_D, torch.randn(8, 2), Diffusion(4), 3, OBJECTIVES[objective])
    assert all(torch.equal(a, b) for a, b in zip(before, (p for network in (G, D) for p in network.parameters())))


def test_a_training_step_can_be_carried_away_with_torch_and_at_most_losses_py():
    """Its source alone, run where nothing but torch and, for the GANs, losses.py is known."""
    (G, D, critic, eps_theta), (of_G, of_D, of_critic, of_eps) = networks()
    x_0, diffusion = torch.randn(8, 2), Diffusion(4)
    alone = {"torch": torch, "F": torch.nn.functional}
    with_losses = alone | {name: value for name, value in vars(losses).items() if not name.startswith("_")}
    for module, names, arguments in ((train_ddpm, alone, (eps_theta, of_eps, x_0, diffusion)),
                                     (train_ddgan, with_losses, (G, D, of_G, of_D, x_0, diffusion, 3)),
                                     (train_siddm, with_losses, (G, critic, of_G, of_critic, x_0, diffusion, 3))):
        names = dict(names)
        exec(inspect.getsource(module.train_step), names)  # noqa: S102 - that is what a reader does
        assert all(value is not None for value in names["train_step"](*arguments).values())
    for module in (losses, diffusion_module):
        imported = {line.split()[1].split(".")[0] for line in inspect.getsource(module).splitlines()
                    if line.startswith(("import", "from"))}
        assert imported - set(sys.stdlib_module_names) == {"torch"}


def test_a_new_divergence_is_one_row_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setitem(OBJECTIVES, "mine", JS)
    assert train_ddgan.recipe("mine", 4) == train_ddgan.recipe("js", 4)
    with pytest.raises(SystemExit) as end:
        train_ddgan.main(["--objective", "mine", "--help"])
    assert end.value.code == 0 and "{" + ",".join(OBJECTIVES) + "}" in capsys.readouterr().out


def test_the_gradient_penalty_makes_a_critic_estimate_w1():
    # weight 100: against a penalty of weight w the best slope is 1 + W_1 / (2 w), at the usual w = 10 just 1.1.
    # 2-D points: on a line, a critic that begins with the wrong slope never gets over the penalty at slope 0
    V, shift = small_critic(2), torch.tensor([1.2, -1.6])
    D = lambda x_prev, x_t, t: V(x_prev)
    optimizer = torch.optim.Adam(V.parameters(), lr=5e-3, betas=(0.5, 0.9))
    for _ in range(500):
        q, p = shift + torch.randn(1024, 2), torch.randn(1024, 2)
        optimizer.zero_grad()
        (discriminator_loss(V(q), V(p), WASSERSTEIN) + 100 * gradient_penalty(D, q, p, None, None)).backward()
        optimizer.step()
    with torch.no_grad():
        estimate = bound(V(shift + torch.randn(100_000, 2)), V(torch.randn(100_000, 2)), WASSERSTEIN).item()
    assert estimate == pytest.approx(shift.norm().item(), rel=0.1)  # W_1 of a shift is its length, 2


def test_the_gradient_penalty_sees_interpolates_of_x_prev_at_fixed_x_t_and_t():
    seen = []

    def D(x_prev, x_t, t):
        seen.append((x_prev.detach(), x_t, t))
        return 3 * x_prev.flatten(1)[:, 0]  # slope 3

    x_prev, x_prev_fake, x_t, t = (torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2), torch.randn(64, 1, 2, 2),
                                   torch.ones(64))
    assert gradient_penalty(D, x_prev, x_prev_fake, x_t, t).item() == pytest.approx((3 - 1) ** 2)
    (between, its_x_t, its_t), = seen
    assert ((between == between[:, :, :1, :1]).all()
            and between.min() >= 0 and between.max() <= 1 and between.std() > 0.2)
    assert its_x_t is x_t and its_t is t


def test_r1_of_a_linear_critic_is_its_squared_slope_and_trains_the_critic():
    w = torch.tensor([3.0, -4.0], requires_grad=True)
    D = lambda x_prev, x_t, t: x_prev @ w + 7 * x_t.sum(1)
    penalty = r1_penalty(D, torch.randn(6, 2), torch.randn(6, 2), torch.ones(6, dtype=torch.int64))
    assert penalty.item() == pytest.approx(25)  # ||w||^2: only x_{t-1} counts, not x_t
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 2 * w.detach())
