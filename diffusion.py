"""The forward process, its posterior, and every reverse sampler: section 2.1, eqs. (1), (2); section 2.3, eq. (10).

t runs from 1 to T. Tables have T+1 entries and entry 0 is clean data (beta_0 = 0, alpha_bar_0 = 1), so that
the posterior at t = 1 is exactly x_0 with variance 0. What is undefined at t = 0 is NaN.
Nothing here knows the shape of the data: images (B, C, H, W) and 2-D points (B, 2) go through the same lines.
"""

import math

import torch


def vp_schedule(s):
    """alpha_bar(s) of the variance-preserving diffusion, s = t/T in [0, 1] (Song et al. 2021, eq. (33)).

    One schedule for every T: at T = 1000 very nearly DDPM's linear beta = 1e-4..0.02, at T = 4 very nearly DDGAN's.
    """
    beta_min, beta_max = 0.1, 20.0  # Song et al. 2021, appendix C; DDGAN's reference code uses the same two
    return torch.exp(-beta_min * s - (beta_max - beta_min) * s**2 / 2)


def cosine_schedule(s):
    """alpha_bar(s) of the cosine schedule, s = t/T in [0, 1] (Nichol and Dhariwal 2021, eq. (17)), mixed with 4e-5.

    As printed it ends at alpha_bar_T = 0, and the last step would divide by alpha_T = 0: the network's error there,
    times 1/sqrt(alpha_T), would begin the chain too wide. 4e-5 is about alpha_bar_T of "vp".
    """
    f, f_0 = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2, math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return 4e-5 + (1 - 4e-5) * f / f_0


def slow_cosine_schedule(s):
    """The cosine schedule at s^1.5: ours. Its first steps are smaller, for data with detail finer than their spread."""
    return cosine_schedule(s**1.5)


SCHEDULES = {"vp": vp_schedule, "cosine": cosine_schedule, "slow-cosine": slow_cosine_schedule}


def at(table, t, like):
    """table[t] for t of shape (B,), broadcastable against `like`: (T+1,), (B,) -> (B, 1, ..., 1)."""
    return table[t].view(-1, *[1] * (like.dim() - 1))


class Diffusion:
    """Tables of the forward process for t = 0..T and everything that follows from them in closed form.

    Arguments: the number of steps T >= 1 and the name of a schedule, a key of SCHEDULES.
    Tables (T+1,), float32, built in float64: beta, alpha, alpha_bar, one_minus_alpha_bar, beta_tilde (the posterior's
    variance), mean_x_0 and mean_x_t (the coefficients of its mean); tau (int64), the times that networks are told.
    All methods take int64 t of shape (B,) with values 1..T (q_sample also 0) and tensors of shape (B, ...).
    Raises ValueError for T < 1 and for an unknown schedule.
    """

    def __init__(self, T, schedule="vp", device="cpu"):
        if T < 1:
            raise ValueError(f"T = {T}: the diffusion needs at least one step")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
        s = torch.arange(T + 1, dtype=torch.float64, device="cpu") / T
        self._build(SCHEDULES[schedule](s), torch.arange(T + 1), device)

    def _build(self, alpha_bar, tau, device):
        """Fill the tables from alpha_bar, (T+1,) in float64; tau[t] is the time that the networks are told, (T+1,)."""
        before, now = alpha_bar[:-1], alpha_bar[1:]  # alpha_bar_{t-1} and alpha_bar_t, t = 1..T
        beta = 1 - now / before
        alpha = 1 - beta
        beta_tilde = (1 - before) / (1 - now) * beta  # the print of (6) drops beta_t
        # E[x_{t-1} | x_t, x_0] = mean_x_0 x_0 + mean_x_t x_t    (Ho et al. 2020, eq. (7))
        mean_x_0 = torch.sqrt(before) * beta / (1 - now)
        mean_x_t = torch.sqrt(alpha) * (1 - before) / (1 - now)

        def table(at_0, values):
            return torch.cat([values.new_tensor([at_0]), values]).to(device, torch.float32)

        self.T, self.device, self._alpha_bar, self.tau = len(now), device, alpha_bar, tau.to(device)
        self.beta, self.alpha = table(0, beta), table(1, alpha)
        self.alpha_bar, self.one_minus_alpha_bar = table(1, now), table(0, 1 - now)
        self.beta_tilde = table(math.nan, beta_tilde)
        self.mean_x_0, self.mean_x_t = table(math.nan, mean_x_0), table(math.nan, mean_x_t)

    def strided(self, S, end=None):
        """The same process seen at S of its times only, spread evenly over 1..end: what few-step samplers run on.

        A sampler of the result begins at end, by default T. Returns a Diffusion of S steps whose tables come from
        alpha_bar[tau] (Song, Meng, Ermon 2021, sec. 4.2); its tau, (S+1,), holds the original times, which the networks
        were trained on. Raises ValueError unless 1 <= S <= end <= T.
        """
        end = self.T if end is None else end
        if not 1 <= S <= end <= self.T:
            raise ValueError(f"steps = {S}, end = {end}: choose 1 <= steps <= end <= T = {self.T}")
        tau = [(2 * i * end + S) // (2 * S) for i in range(S + 1)]  # i end / S, rounded half up
        sub = object.__new__(Diffusion)  # without __init__, which knows whole schedules only
        sub._build(self._alpha_bar[tau], self.tau[tau], self.device)
        return sub

    # -- forward ------------------------------------------------------------------------------------------

    def q_step(self, x_prev, t):
        """Sample x_t ~ q(x_t | x_{t-1}), eq. (1)."""
        alpha, beta = at(self.alpha, t, like=x_prev), at(self.beta, t, like=x_prev)  # alpha_t = 1 - beta_t
        return torch.sqrt(alpha) * x_prev + torch.sqrt(beta) * torch.randn_like(x_prev)

    def q_sample(self, x_0, t, eps=None):
        """Sample x_t ~ q(x_t | x_0), eq. (2), with the noise eps where it is given; t = 0 returns x_0."""
        eps = torch.randn_like(x_0) if eps is None else eps
        alpha_bar, variance = at(self.alpha_bar, t, like=x_0), at(self.one_minus_alpha_bar, t, like=x_0)
        return torch.sqrt(alpha_bar) * x_0 + torch.sqrt(variance) * eps

    def q_pair(self, x_0, t):
        """Sample the pair (x_{t-1}, x_t) ~ q(x_{t-1}, x_t | x_0) that DDGAN trains on, eqs. (2) and (1)."""
        x_prev = self.q_sample(x_0, t - 1)
        return x_prev, self.q_step(x_prev, t)

    # -- posterior ----------------------------------------------------------------------------------------

    def posterior(self, x_0, x_t, t):
        """Mean (B, ...) and variance (B, 1, ...) of the normal q(x_{t-1} | x_t, x_0), Ho et al. 2020, eqs. (6), (7)."""
        mean = at(self.mean_x_0, t, like=x_0) * x_0 + at(self.mean_x_t, t, like=x_t) * x_t
        return mean, at(self.beta_tilde, t, like=x_t)

    def posterior_sample(self, x_0, x_t, t, temperature=1.0):
        """Sample x_{t-1} ~ q(x_{t-1} | x_t, x_0); with x_0 = G(x_t, z, t) it is p_theta of eq. (10).

        temperature scales the noise: 1 is q; less is ours, for fewer broken images that vary less.
        """
        mean, variance = self.posterior(x_0, x_t, t)
        return mean + temperature * torch.sqrt(variance) * torch.randn_like(x_t)

    def learned_variance(self, v, t):
        """sigma_t^2 = exp(v log beta_t + (1 - v) log beta_tilde_t), Nichol and Dhariwal 2021, eq. (15): (B, ...).

        v (B, ...) is a number for each pixel. beta_tilde_1 is 0; beta_tilde_2 takes its place, as in Ho et al.'s code.
        """
        log_beta, log_beta_tilde = at(self.beta.log(), t, like=v), at(self.beta_tilde.log(), t.clamp(min=2), like=v)
        return torch.exp(v * log_beta + (1 - v) * log_beta_tilde)

    def x_0_from_eps(self, x_t, eps, t):
        """The x_0 that eq. (2) took to x_t with the noise eps."""
        alpha_bar, variance = at(self.alpha_bar, t, like=x_t), at(self.one_minus_alpha_bar, t, like=x_t)
        return (x_t - torch.sqrt(variance) * eps) / torch.sqrt(alpha_bar)

    def eps_from_x_0(self, x_t, x_0, t):
        """The noise with which eq. (2) took x_0 to x_t: the second line of eq. (6)."""
        alpha_bar, variance = at(self.alpha_bar, t, like=x_t), at(self.one_minus_alpha_bar, t, like=x_t)
        return (x_t - torch.sqrt(alpha_bar) * x_0) / torch.sqrt(variance)

    # -- reverse samplers ---------------------------------------------------------------------------------
    # Each starts from x_T ~ N(0, I), (B, ...), or from any x_t on strided(..., end=t), and returns x_0. `clip` bounds
    # the predicted x_0 to [-1, 1], as every image DDPM does; for points pass clip=False.

    @torch.no_grad()
    def ancestral(self, eps_theta, x_T, variance="beta_tilde", clip=True):
        """Algorithm 2 of Ho et al. 2020, sigma_t^2 = beta_t, beta_tilde_t, or "learned"; strided(S) makes it shorter.

        eps_theta(x_t, t) -> eps (B, ...), with "learned" a pair of eps and the v of learned_variance. Raises ValueError
        for another variance.
        """
        if variance not in ("beta", "beta_tilde", "learned"):
            raise ValueError(f"variance {variance!r}: choose beta, beta_tilde or learned")
        x_t = x_T
        for step in range(self.T, 0, -1):
            t = torch.full((len(x_t),), step, device=x_t.device)
            # x_{t-1} = 1/sqrt(alpha_t) (x_t - (1 - alpha_t)/sqrt(1 - alpha_bar_t) eps_theta(x_t, t)) + sigma_t z,
            # whose first term is the posterior's mean with eps_theta's x_0 put in; so written, x_0 can be clipped
            eps = eps_theta(x_t, self.tau[t])
            eps, v = eps if variance == "learned" else (eps, None)
            x_0 = self.x_0_from_eps(x_t, eps, t)
            x_t, _ = self.posterior(x_0.clamp(-1, 1) if clip else x_0, x_t, t)
            if step > 1:
                sigma_squared = self.learned_variance(v, t) if variance == "learned" else getattr(self, variance)[step]
                x_t = x_t + torch.sqrt(sigma_squared) * torch.randn_like(x_t)
        return x_t

    @torch.no_grad()
    def ddim(self, eps_theta, x_T, eta=0.0, clip=True):
        """DDIM (Song, Meng, Ermon 2021, eqs. (12), (16)): eta = 0 is deterministic, 1 is `ancestral` with beta_tilde.

        eps_theta(x_t, t) -> eps (B, ...). Raises ValueError for eta outside [0, 1].
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta = {eta}: choose between 0 (deterministic) and 1 (ancestral)")
        x_t = x_T
        for step in range(self.T, 0, -1):
            t = torch.full((len(x_t),), step, device=x_t.device)
            x_0 = self.x_0_from_eps(x_t, eps_theta(x_t, self.tau[t]), t)
            x_0 = x_0.clamp(-1, 1) if clip else x_0
            eps = self.eps_from_x_0(x_t, x_0, t)
            # x_{t-1} = sqrt(alpha_bar_{t-1}) x_0 + sqrt(1 - alpha_bar_{t-1} - sigma_t^2) eps + sigma_t z
            sigma_squared = eta**2 * self.beta_tilde[step]
            towards_x_t = torch.sqrt((self.one_minus_alpha_bar[step - 1] - sigma_squared).clamp(min=0)) * eps
            noise = torch.sqrt(sigma_squared) * torch.randn_like(x_t) if eta else 0
            x_t = torch.sqrt(self.alpha_bar[step - 1]) * x_0 + towards_x_t + noise
        return x_t

    @torch.no_grad()
    def ddgan(self, G, x_T, z_dim, temperature=1.0):
        """The chain of eq. (10): x_{t-1} ~ q(x_{t-1} | x_t, x_0 = G(x_t, z, t)) with z ~ N(0, I) of (B, z_dim).

        temperature is posterior_sample's.
        """
        x_t = x_T
        for step in range(self.T, 0, -1):
            t = torch.full((len(x_t),), step, device=x_t.device)
            z = torch.randn(len(x_t), z_dim, device=x_t.device)
            x_t = self.posterior_sample(G(x_t, z, self.tau[t]), x_t, t, temperature)
        return x_t
