"""Claims of section 2.1 about diffusion.py. Monte-Carlo tolerances are five standard errors of the estimate."""

import math

import pytest
import torch

from diffusion import SCHEDULES, Diffusion
from model import PREDICTIONS, eps_from

T_OF_INTEREST = [2, 4, 10, 1000]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("T", [1, 4, 50])
def test_forward_chain_iterated_with_1_has_the_moments_of_2(T, schedule):
    diffusion, n = Diffusion(T, schedule), 100_000
    x = torch.full((n, 1), 0.7)
    for t in range(1, T + 1):
        x = diffusion.q_step(x, torch.full((n,), t))
        mean, variance = diffusion.alpha_bar[t].sqrt() * 0.7, 1 - diffusion.alpha_bar[t]
        assert x.mean() == pytest.approx(mean.item(), abs=5 * (variance / n).sqrt().item() + 1e-6)
        assert x.var() == pytest.approx(variance.item(), rel=5 * math.sqrt(2 / n))
        x_t = diffusion.q_sample(torch.full((n, 1), 0.7), torch.full((n,), t))
        assert x_t.mean() == pytest.approx(mean.item(), abs=5 * (variance / n).sqrt().item() + 1e-6)
        assert x_t.var() == pytest.approx(variance.item(), rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("T", [2, 4, 10])
def test_the_pair_has_the_joint_moments_of_the_chain(T):
    diffusion, n = Diffusion(T), 200_000
    for t in range(2, T + 1):
        x_prev, x_t = diffusion.q_pair(torch.full((n, 1), -0.4), torch.full((n,), t))
        pair = torch.cat([x_prev, x_t], dim=1)  # (n, 2)
        alpha, alpha_bar, before = diffusion.alpha[t], diffusion.alpha_bar[t], diffusion.alpha_bar[t - 1]
        mean = -0.4 * torch.stack([before.sqrt(), alpha_bar.sqrt()])
        covariance = (1 - before) * torch.tensor([[1, alpha.sqrt()], [alpha.sqrt(), 0]])
        covariance[1, 1] = 1 - alpha_bar
        torch.testing.assert_close(pair.mean(0), mean, rtol=0, atol=5 / math.sqrt(n))
        torch.testing.assert_close(pair.T.cov(), covariance, rtol=0, atol=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("T", T_OF_INTEREST)
def test_posterior_is_bayes_rule(T, schedule):
    """Conditioning the joint normal of (x_{t-1}, x_t) given x_0, built from (1) and (2) alone, in float64."""
    diffusion, x_0 = Diffusion(T, schedule), 0.3
    for t in {2, T // 2 + 1, T}:
        beta = diffusion.beta[t].double()
        alpha_bar_before = diffusion.alpha_bar[t - 1].double()
        variance_before = diffusion.one_minus_alpha_bar[t - 1].double()
        for x_t in (-1.0, 0.5):
            # p(x_{t-1}) = N(m, v), x_t = sqrt(1 - beta) x_{t-1} + N(0, beta)
            # =>  x_{t-1} | x_t by the gain of a Kalman filter
            m, v, a = alpha_bar_before.sqrt() * x_0, variance_before, (1 - beta).sqrt()
            gain = v * a / (a**2 * v + beta)
            mean, variance = diffusion.posterior(torch.full((1, 1), x_0), torch.full((1, 1), x_t), torch.tensor([t]))
            assert mean.item() == pytest.approx((m + gain * (x_t - a * m)).item(), abs=1e-5)
            assert variance.item() == pytest.approx(((1 - gain * a) * v).item(), rel=1e-4)


@pytest.mark.parametrize("T", [1, *T_OF_INTEREST])
def test_posterior_at_t_1_is_x_0_with_variance_0(T):
    x_0, x_t = torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)
    mean, variance = Diffusion(T).posterior(x_0, x_t, torch.ones(8, dtype=torch.int64))
    assert torch.equal(mean, x_0) and not variance.any()


def test_tables_at_4_agree_with_those_of_ddgans_code():
    s = 1e-3 + (1 - 1e-3) * torch.arange(5, dtype=torch.float64) / 4  # its time begins at 0.001
    alpha_bar = torch.exp(-0.1 * s - 19.9 * s**2 / 2)
    assert (Diffusion(4).alpha_bar - alpha_bar / alpha_bar[0]).abs().max() < 3e-3


def test_tables_at_1000_agree_with_the_linear_schedule_of_ddpm():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    ours = Diffusion(1000).alpha_bar[1:].double()
    assert (ours - torch.cumprod(1 - beta, dim=0)).abs().max() < 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_almost_nothing_of_x_0_is_left_at_T_for_every_T(schedule):
    for T in range(1, 1001):
        diffusion = Diffusion(T, schedule)
        assert diffusion.alpha_bar[T] < 1e-4
        assert (diffusion.beta[1:] > 0).all() and (diffusion.beta[1:] < 1).all()


@pytest.mark.parametrize(("schedule", "half_way"), [
    ("vp", math.exp(-0.05 - 19.9 / 8)),
    ("cosine", (math.cos(0.508 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2),
    ("slow-cosine", (math.cos((0.5**1.5 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2)])
def test_a_schedule_begins_at_1_and_is_half_way_what_its_formula_says(schedule, half_way):
    beginning, middle = SCHEDULES[schedule](torch.tensor([0.0, 0.5], dtype=torch.float64)).tolist()
    assert beginning == 1 and middle == pytest.approx(half_way, abs=4e-5)  # 4e-5 keep the cosines from ending at 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_tables_are_those_that_the_papers_print(schedule):
    """alpha_bar_t = prod (1 - beta_i); beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t."""
    diffusion = Diffusion(50, schedule)
    alpha_bar = torch.cumprod(1 - diffusion.beta.double(), dim=0)
    # float32: beta is known to 6e-8, fifty of which add up, relative to an alpha_bar that is small at the end
    torch.testing.assert_close(diffusion.alpha_bar.double(), alpha_bar, rtol=2e-4, atol=1e-6)
    beta_tilde = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * diffusion.beta[1:].double()
    torch.testing.assert_close(diffusion.beta_tilde[1:].double(), beta_tilde, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("make", [
    lambda s: Diffusion(50, s),
    lambda s: Diffusion(1000, s).strided(50),
    lambda s: Diffusion(1000, s),
], ids=["T = 50", "50 of 1000", "T = 1000"])
def test_a_networks_error_does_not_begin_the_chain_too_wide(schedule, make):
    """eps_theta off by 0.04 at all t, as a small network is: the first step must not blow it up by 1/sqrt(alpha_T)."""
    diffusion, wrong, n = make(schedule), 0.04 * torch.randn(20_000, 2), 20_000
    seen = []

    def eps_theta(x_t, t):  # data: all at 0, so that x_t is sqrt(1 - alpha_bar_t) eps
        seen.append(x_t)
        return x_t / diffusion.one_minus_alpha_bar[diffusion.T - len(seen) + 1].sqrt() + wrong

    diffusion.ancestral(eps_theta, torch.randn(n, 2), clip=False)
    assert seen[1].std() < 1.1  # it was 6 to 7 where alpha_T was clamped to 4e-5


def test_what_is_undefined_at_0_is_nan_and_the_rest_is_clean_data():
    diffusion = Diffusion(4)
    assert diffusion.alpha_bar[0] == 1 and diffusion.beta[0] == 0
    assert diffusion.beta_tilde[0].isnan() and diffusion.mean_x_0[0].isnan() and diffusion.mean_x_t[0].isnan()


def test_eps_and_x_0_are_each_others_inverse():
    diffusion, t = Diffusion(10), torch.arange(1, 11)
    x_0, eps = torch.randn(10, 2), torch.randn(10, 2)
    x_t = diffusion.q_sample(x_0, t, eps)
    torch.testing.assert_close(diffusion.eps_from_x_0(x_t, x_0, t), eps, rtol=0, atol=1e-4)
    # float32 loses 1/sqrt(alpha_bar_T) = 150 units in the last place of x_t
    torch.testing.assert_close(diffusion.x_0_from_eps(x_t, eps, t), x_0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("T", [4, 1000])
def test_eps_from_finds_the_noise_whatever_the_network_predicts(T):
    diffusion, t = Diffusion(T), torch.arange(1, T + 1)
    x_0, eps = torch.randn(T, 2), torch.randn(T, 2)
    x_t = diffusion.q_sample(x_0, t, eps)
    said = {"eps": eps, "x_0": x_0, "mean": diffusion.posterior(x_0, x_t, t)[0]}
    assert said.keys() == set(PREDICTIONS)
    for predict, output in said.items():
        # float32: at T = 1000 x_t - sqrt(alpha_t) mean is 0.0063 eps at its smallest, so that 4e-7 in it is 7e-5 in eps
        torch.testing.assert_close(eps_from(predict, output, x_t, t, diffusion), eps, rtol=0, atol=2e-4)


# -- samplers on data ~ N(m, S) in two dimensions, where the perfect eps_theta is known -----------------------

MEAN = torch.tensor([0.5, -1.0])
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]])


def perfect_eps(diffusion):
    """E[eps | x_t]: x_t is N(sqrt(alpha_bar) m, alpha_bar S + (1 - alpha_bar) I), eps = -sqrt(1 - alpha_bar) score."""

    def eps_theta(x_t, t):
        alpha_bar = diffusion.alpha_bar[t[0]].double()
        covariance = alpha_bar * COVARIANCE.double() + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
        residual = x_t.double() - alpha_bar.sqrt() * MEAN
        return ((1 - alpha_bar).sqrt() * residual @ torch.linalg.inv(covariance)).float()

    return eps_theta


@pytest.mark.parametrize("sampler", [
    lambda d, eps, x: d.ancestral(eps, x, clip=False),
    lambda d, eps, x: d.ancestral(eps, x, "beta", clip=False),
    lambda d, eps, x: d.ddim(eps, x, 0.0, clip=False),
    lambda d, eps, x: d.ddim(eps, x, 0.5, clip=False),
    lambda d, eps, x: d.ddim(eps, x, 1.0, clip=False),
    lambda d, eps, x: d.strided(150).ddim(eps, x, 0.0, clip=False),
    lambda d, eps, x: d.strided(150).ancestral(eps, x, clip=False),
], ids=["beta-tilde", "beta", "ddim-0", "ddim-0.5", "ddim-1", "strided-ddim", "strided-ancestral"])
def test_a_perfect_eps_theta_makes_each_sampler_return_the_data(sampler):
    diffusion, n = Diffusion(300), 20_000
    samples = sampler(diffusion, perfect_eps(diffusion), torch.randn(n, 2))
    # a normal p_theta is right for infinitely small steps only: on S steps the covariance is off by 5.2/S (measured for
    # beta-tilde, S = 300, n = 10^6), here at most 0.035; the rest is five standard errors
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=5 * math.sqrt(0.5 / n))
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, rtol=0, atol=0.035 + 5 * math.sqrt(2 * 0.25 / n))


@pytest.mark.parametrize("T", [1, 2, 4])
def test_a_perfect_generator_makes_the_ddgan_sampler_return_the_data_in_few_steps(T):
    """G draws x_0 from the true q(x_0 | x_t): eq. (10) is then exact for every T."""
    diffusion, n = Diffusion(T), 100_000

    def G(x_t, z, t):
        alpha_bar = diffusion.alpha_bar[t[0]]
        gain = alpha_bar.sqrt() * COVARIANCE @ torch.linalg.inv(alpha_bar * COVARIANCE + (1 - alpha_bar) * torch.eye(2))
        conditional = COVARIANCE - gain @ (alpha_bar.sqrt() * COVARIANCE)
        return MEAN + (x_t - alpha_bar.sqrt() * MEAN) @ gain.T + z @ torch.linalg.cholesky(conditional).T

    samples = diffusion.ddgan(G, torch.randn(n, 2), z_dim=2)
    # 0.01: alpha_bar_T > 0
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=5 * math.sqrt(0.5 / n) + 0.01)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, rtol=0, atol=5 * math.sqrt(2 * 0.25 / n))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_temperature_scales_the_noise_of_every_step_of_the_chain_and_nothing_else(temperature):
    """With G = x_t / 2 + z the chain is linear: the variance of each x_{t-1} follows from that of x_t."""
    diffusion, n, seen = Diffusion(4), 200_000, []

    def G(x_t, z, t):
        seen.append(x_t)
        return x_t / 2 + z

    x_0 = diffusion.ddgan(G, torch.randn(n, 1), z_dim=1, temperature=temperature)
    variance = 1.0
    for t, x_prev in zip((4, 3, 2, 1), [*seen[1:], x_0]):
        by_x_0, by_x_t, noise = (table[t].item() for table in (diffusion.mean_x_0, diffusion.mean_x_t,
                                                               diffusion.beta_tilde))
        variance = (by_x_0 / 2 + by_x_t) ** 2 * variance + by_x_0**2 + temperature**2 * noise
        assert x_prev.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))  # five standard errors


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_eta_1_on_all_steps_is_ancestral_sampling(clip):
    diffusion, x_T = Diffusion(20), torch.randn(5, 1, 4, 4)

    def eps_theta(x_t, t):
        return torch.sin(3 * x_t) + 0.1 * t.view(-1, 1, 1, 1)

    torch.manual_seed(1)
    ancestral = diffusion.ancestral(eps_theta, x_T, clip=clip)
    torch.manual_seed(1)
    ddim = diffusion.ddim(eps_theta, x_T, eta=1.0, clip=clip)
    scale = ancestral.abs().max().item()  # without clipping the nonsense of this eps_theta grows
    torch.testing.assert_close(ddim, ancestral, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("sample", [Diffusion.ancestral, Diffusion.ddim])
def test_a_predicted_x_0_is_clipped_to_the_range_of_images_unless_told_otherwise(sample):
    diffusion, x_T = Diffusion(1), torch.randn(4, 2)
    beyond = lambda x_t, t: diffusion.eps_from_x_0(x_t, torch.full_like(x_t, 5.0), t)
    torch.testing.assert_close(sample(diffusion, beyond, x_T), torch.ones(4, 2))
    # 0.01: float32 loses 1/sqrt(alpha_bar_T) = 150 units in the last place
    torch.testing.assert_close(sample(diffusion, beyond, x_T, clip=False), torch.full((4, 2), 5.0), rtol=0, atol=0.01)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_ancestral_step_is_algorithm_2_as_printed(variance):
    diffusion, x_T, eps = Diffusion(10), torch.randn(3, 2), torch.randn(11, 3, 2)
    torch.manual_seed(1)
    drawn = diffusion.ancestral(lambda x_t, t: eps[t[0]], x_T, variance, clip=False)
    torch.manual_seed(1)
    x_t = x_T.double()
    for t in range(10, 0, -1):
        alpha, alpha_bar = diffusion.alpha[t].double(), diffusion.alpha_bar[t].double()
        noise = getattr(diffusion, variance)[t].sqrt() * torch.randn(3, 2) if t > 1 else 0
        x_t = (x_t - (1 - alpha) / torch.sqrt(1 - alpha_bar) * eps[t]) / torch.sqrt(alpha) + noise
    torch.testing.assert_close(drawn.double(), x_t, rtol=0, atol=2e-6 * x_t.abs().max().item())  # float32


def test_ddims_noise_has_eta_times_the_posteriors_deviation():
    """Song, Meng, Ermon 2021, eq. (16): from x_2 = 0 with eps_theta = 0, x_1 is sigma_2 z."""
    diffusion, n, seen = Diffusion(2), 100_000, []
    diffusion.ddim(lambda x_t, t: seen.append(x_t) or torch.zeros_like(x_t), torch.zeros(n, 1), eta=0.5)
    assert seen[1].std() == pytest.approx(0.5 * diffusion.beta_tilde[2].sqrt().item(), rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("S", [1, 7, 10])
def test_a_strided_process_keeps_alpha_bar_and_tells_networks_the_original_times(S):
    diffusion = Diffusion(10)
    sub = diffusion.strided(S)
    assert sub.T == S and sub.tau[0] == 0 and sub.tau[-1] == 10 and (sub.tau.diff() > 0).all()
    torch.testing.assert_close(sub.alpha_bar, diffusion.alpha_bar[sub.tau])
    told = []
    sub.ddim(lambda x_t, t: told.append(t[0].item()) or x_t, torch.randn(2, 2))
    assert told == sub.tau[1:].flip(0).tolist()


@pytest.mark.parametrize(("S", "times"), [(1, [6]), (2, [3, 6]), (4, [2, 3, 5, 6]), (6, [1, 2, 3, 4, 5, 6])])
def test_a_strided_process_can_end_at_any_t_so_that_a_sampler_begins_there(S, times):
    diffusion, told = Diffusion(10), []
    sub = diffusion.strided(S, end=6)
    torch.testing.assert_close(sub.alpha_bar, diffusion.alpha_bar[[0, *times]])
    sub.ancestral(lambda x_t, t: told.append(t[0].item()) or x_t, torch.randn(2, 2))
    assert told == times[::-1]


def test_samplers_do_not_care_about_the_shape_of_the_data():
    diffusion = Diffusion(3)
    for shape in [(4, 2), (4, 1, 28, 28), (4, 3, 8, 6), (4, 5)]:
        eps_theta = lambda x_t, t: 0.5 * x_t
        for sample in (diffusion.ancestral(eps_theta, torch.randn(shape)),
                       diffusion.ddim(eps_theta, torch.randn(shape), 0.5),
                       diffusion.ddgan(lambda x_t, z, t: 0.1 * x_t, torch.randn(shape), 6)):
            assert sample.shape == shape and sample.isfinite().all()


@pytest.mark.parametrize("call, named", [
    (lambda: Diffusion(0), "T = 0"),
    (lambda: Diffusion(4, "linear"), "'linear'"),
    (lambda: Diffusion(4).strided(5), "steps = 5"),
    (lambda: Diffusion(4).strided(0), "steps = 0"),
    (lambda: Diffusion(4).strided(3, end=2), "steps = 3"),
    (lambda: Diffusion(4).strided(1, end=5), "end = 5"),
    (lambda: Diffusion(4).ddim(None, torch.zeros(1, 2), eta=1.5), "eta = 1.5"),
    (lambda: Diffusion(4).ancestral(None, torch.zeros(1, 2), variance="small"), "'small'"),
])
def test_wrong_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
