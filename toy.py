"""25 Gaussians: the whole idea in minutes, without a download. Xiao et al. 2022; Xu et al. 2023, sec. 5.1 and Table 1.

    python toy.py                                # DDGAN, T = 4
    python toy.py --T 1                          # with one step: an ordinary GAN
    python toy.py --table                        # Xu et al. 2023, Table 1: 91 runs

Small MLPs, trained and sampled by the steps of the image scripts. Prints the modes covered, the share of high-quality
samples, two distances to held-out data; draws toy.png: data, samples, trajectories, and section 2.2's picture.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import math
import time
from statistics import fmean

import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import train_ddgan
import train_ddpm
import train_siddm
from cli import BadInput, number
from data import save_figure, subplots
from diffusion import Diffusion
from features import moments
from fid import frechet_distance
from losses import GENERATOR_LOSSES, OBJECTIVES
from run import MovingAverage

GRID, STD = 5.0, 1 / 3  # the distance of neighbouring modes, and a mode's deviation, as in the code of Xu et al. 2023
MODES = GRID * torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))  # (25, 2)
SCALE = math.sqrt(0.5) / GRID  # to the networks' units, in which the data have variance 1
SAMPLES = 10_000  # that are scored


def draw(n):
    """n points of the mixture, (n, 2), in the networks' units."""
    return SCALE * (MODES[torch.randint(25, (n,))] + STD * torch.randn(n, 2))


# -- networks: what unet.py is for images ---------------------------------------------------------------------


def fourier_features(x, octaves):
    """Points with sines and cosines of their coordinates, each half as long as the last: (B, 2) -> (B, 2 + 4 octaves).

    Without them an MLP cannot see modes so much narrower than their grid.
    """
    angles = x[:, :, None] * math.pi / 2 * 2.0 ** torch.arange(octaves)  # (B, 2) -> (B, 2, octaves)
    return torch.cat([x, angles.sin().flatten(1), angles.cos().flatten(1)], dim=1)


class MLP(nn.Module):
    """Three hidden layers on t, int64 (B,) from 1 to T, and vectors (B, c) that have c_in numbers together."""

    def __init__(self, T, c_in, c_out, width=128):
        super().__init__()
        self.embed_t = nn.Embedding(T + 1, 32)  # learned: sinusoids of 1, 2, 3, 4 are too alike for so small a network
        self.layers = nn.Sequential(nn.Linear(32 + c_in, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                    nn.Linear(width, width), nn.SiLU(), nn.Linear(width, c_out))

    def evaluate(self, t, *vectors):
        return self.layers(torch.cat([self.embed_t(t), *vectors], dim=1))


class EpsTheta(MLP):
    def __init__(self, T):
        super().__init__(T, 2 + 4 * 4, 2)

    def forward(self, x_t, t):
        return self.evaluate(t, fourier_features(x_t, 4))


class Generator(MLP):
    """x_0 (B, 2): x_t and a correction, which begins as 0, so that no mode is lost before D has learned anything."""

    def __init__(self, T, z_dim):
        super().__init__(T, 2 + 4 * 4 + z_dim, 2)
        self.z_dim = z_dim
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x_t, z, t):
        return x_t + self.evaluate(t, fourier_features(x_t, 4), z)


class Discriminator(MLP):
    """V (B,). Its features are coarser: one that sees single modes sharply shows G no way from one mode to the next."""

    def __init__(self, T):
        super().__init__(T, 2 * (2 + 4 * 3), 1)

    def forward(self, x_prev, x_t, t):
        return self.evaluate(t, fourier_features(x_prev, 3), fourier_features(x_t, 3)).squeeze(1)


class Critic(MLP):
    """SIDDM's: V (B,), C_psi and x_0 (B, 2)."""

    def __init__(self, T):
        super().__init__(T, 2 + 4 * 3, 1 + 2 + 2)

    def forward(self, x_prev, t):
        V, correction, x_0 = self.evaluate(t, fourier_features(x_prev, 3)).split([1, 2, 2], dim=1)
        return V.squeeze(1), x_prev + correction, x_0


# -- training and sampling ------------------------------------------------------------------------------------

LR, BETAS, R1 = 2e-3, (0.5, 0.99), 0.005  # ours, by trial, as is the schedule
LR_D = {"ddgan": 4e-3, "siddm": 1e-3}  # siddm's: half of lr_G, as Xu et al. for images


def train(method, T, seed=0, objective="js", r1=None, lr_g=LR, lr_d=None, energy=0.0, afd=1.0, reg=1.0, z_dim=8,
          steps=6000, batch=256):
    """Train a "ddpm", "ddgan" or "siddm": its averaged network, its Diffusion. The options are main's flags."""
    torch.manual_seed(seed)
    diffusion = Diffusion(T, "slow-cosine")
    network = EpsTheta(T) if method == "ddpm" else Generator(T, z_dim)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr_g, betas=BETAS, fused=True)
    schedulers = [CosineAnnealingLR(optimizer, steps)]
    if method != "ddpm":
        D = Critic(T) if method == "siddm" else Discriminator(T)
        optimizer_D = torch.optim.Adam(D.parameters(), lr=lr_d or LR_D[method], betas=BETAS, fused=True)
        schedulers.append(CosineAnnealingLR(optimizer_D, steps))
    recipe = train_ddgan.recipe(objective, 4)  # T = 4 for every T: its R1 of other T is for images
    r1 = (R1 if recipe["r1"] else 0.0) if r1 is None else r1
    ema = MovingAverage(network, decay=0.999)
    for step in tqdm(range(steps), leave=False, disable=None, desc=f"{method}, T = {T}, seed {seed}"):
        x_0 = draw(batch)
        if method == "ddpm":
            train_ddpm.train_step(network, optimizer, x_0, diffusion)
        elif method == "siddm":
            train_siddm.train_step(network, D, optimizer, optimizer_D, x_0, diffusion, z_dim, afd=afd, reg=reg)
        else:
            train_ddgan.train_step(network, D, optimizer, optimizer_D, x_0, diffusion, z_dim, OBJECTIVES[objective],
                                   GENERATOR_LOSSES[recipe["generator"]], r1=train_ddgan.lazy_r1(r1, step),
                                   gp=recipe["gp"], drift=recipe["drift"], energy=energy)
        for scheduler in schedulers:
            scheduler.step()
        ema.update_parameters(network)
    return ema.module, diffusion


@torch.no_grad()
def sample(network, diffusion, n):
    """The trajectories of n points from x_T to x_0: T+1 tensors (n, 2)."""
    path = []

    def noted(x_t, *rest):
        path.append(x_t)
        return network(x_t, *rest)

    x_T = torch.randn(n, 2)
    if isinstance(network, EpsTheta):
        x_0 = diffusion.ancestral(noted, x_T, clip=False)
    else:
        x_0 = diffusion.ddgan(noted, x_T, network.z_dim)
    return [*path, x_0]


def score(x, held_out):
    """Points (n, 2) against as many held-out ones: a dict of modes covered, share of high quality, and two distances.

    A sample is of high quality within 4 STD of a mode; a mode is covered if it has a fifth of its fair share of those.
    frechet and sliced (W_1, the mean over 32 directions) are in the units of GRID, squared and not.
    """
    x, held_out = x / SCALE, held_out / SCALE
    distance, nearest = torch.cdist(x, MODES).min(dim=1)
    good = distance < 4 * STD
    share = torch.bincount(nearest[good], minlength=25) / len(x)
    angles = math.pi / 32 * torch.arange(32)
    directions = torch.stack([angles.cos(), angles.sin()])  # (2, 32)
    projected = zip((x @ directions).T.numpy(), (held_out @ directions).T.numpy())
    return {"modes": (share >= 1 / 25 / 5).sum().item(), "quality": good.float().mean().item(),
            "frechet": frechet_distance(*moments([x]), *moments([held_out])),
            "sliced": fmean(wasserstein_distance(a, b) for a, b in projected)}


# -- the picture ----------------------------------------------------------------------------------------------


def true_posterior(x_t, t, diffusion, n):
    """n draws (n, 2) from q(x_0 | x_t) for one x_t (2,) at t (1,), and its mean (2,), all that a DDPM predicts."""
    x_0 = draw(200_000)
    alpha_bar, variance = diffusion.alpha_bar[t], diffusion.one_minus_alpha_bar[t]
    weight = torch.softmax(-(x_t - torch.sqrt(alpha_bar) * x_0).square().sum(1) / (2 * variance), dim=0)  # Bayes' rule
    return x_0[weight.multinomial(n, replacement=True)], weight @ x_0


@torch.no_grad()
def draw_figure(network, diffusion, path, title, out):
    """Data, samples, trajectories; section 2.2: from which x_0 may x_t have come, which are predicted?"""
    figure, axes = subplots(1, 4, figsize=(14, 3.9), layout="constrained")
    points = {"s": 1, "alpha": 0.3, "linewidths": 0}
    axes[0].scatter(*draw(SAMPLES).T, **points)
    axes[0].set_title("data")
    axes[1].scatter(*path[-1].T, **points)
    axes[1].set_title(title)
    trajectories = torch.stack(path)[:, :40]  # (T+1, 40, 2)
    for trajectory in trajectories.unbind(1):
        axes[2].plot(*trajectory.T, color="0.7", linewidth=0.5)
    axes[2].scatter(*trajectories[0].T, s=8, color="C1", label="x_T")
    axes[2].scatter(*trajectories[-1].T, s=8, color="C0", label="x_0")
    axes[2].set_title("40 trajectories from x_T to x_0")

    # the last t with alpha_bar > 0.8: 1 at T = 4, where x_{t-1} is x_0
    t = ((diffusion.alpha_bar > 0.8).sum() - 1).clamp(min=1).view(1)
    x_t = diffusion.q_sample(SCALE * GRID * torch.tensor([[0.5, 0.5]]), t, torch.zeros(1, 2))  # as far from four modes
    exact, mean = true_posterior(x_t[0], t, diffusion, 500)
    axes[3].scatter(*exact.T, s=16, color="0.7", label="x_0 given x_t, exact")
    if isinstance(network, EpsTheta):
        predicted, label = diffusion.x_0_from_eps(x_t, network(x_t, t), t), "eps_theta's x_0"
    else:
        z = torch.randn(500, network.z_dim)
        predicted, label = network(x_t.expand(500, 2), z, t.expand(500)), "G(x_t, z, t), 500 z"
    axes[3].scatter(*predicted.T, s=4, color="C0", label=label)
    axes[3].scatter(*mean, marker="x", color="C3", label="its mean, what a DDPM learns")
    axes[3].scatter(*(x_t[0] / diffusion.alpha_bar[t].sqrt()), marker="+", color="k", label="x_t, scaled")
    axes[3].set_title(f"one x_t at t = {t.item()} (section 2.2)")
    for axis, limits in zip(axes, 3 * [(-2.4, 2.4)] + [(-0.6, 1.3)]):  # the last: around the four modes
        axis.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")
    for axis in axes[2:]:
        axis.legend(fontsize=6, loc="lower center", ncols=2)
    save_figure(figure, out, dpi=110)


# -- Xu et al. 2023, Table 1 ---------------------------------------------------------------------------------------

TABLE = {  # method, lambda_AFD, the published values: {T: distance}
    "GAN": ("ddgan", 1.0, {1: 12.04}),
    "DDGAN": ("ddgan", 1.0, {2: 7.27, 4: 0.99, 8: 0.49, 16: 0.53}),
    "SIDDM": ("siddm", 1.0, {2: 0.14, 4: 1.21, 8: 0.30, 16: 0.23}),
    "SIDDM without AFD": ("siddm", 0.0, {2: 21.19, 4: 53.22, 8: 7.04, 16: 14.37}),
}


def table(first_seed, seeds=7, **options):
    """Print Table 1, measured beside published: Frechet distance, modes and quality, mean and range of the seeds."""
    print(f"{'':20}{'T':>3}{'published':>11}{'Frechet distance':>28}{'modes':>12}{'quality':>16}")
    floor = [score(draw(SAMPLES), draw(SAMPLES))["frechet"] for _ in range(seeds)]
    print(f"{'held-out data':34}{fmean(floor):12.3f} ({min(floor):.3f}-{max(floor):.3f})")
    for name, (method, afd, published) in TABLE.items():
        for T, value in published.items():
            results = []
            for seed in range(first_seed, first_seed + seeds):
                network, diffusion = train(method, T, seed, **options | {"afd": afd})
                results.append(score(sample(network, diffusion, SAMPLES)[-1], draw(SAMPLES)))
            modes, quality, frechet = ([result[key] for result in results] for key in ("modes", "quality", "frechet"))
            print(f"{name:20}{T:3}{value:11.2f}{fmean(frechet):12.3f} ({min(frechet):.3f}-{max(frechet):.3f})"
                  f"{min(modes):8}-{max(modes):2}{100 * fmean(quality):7.1f} % "
                  f"({100 * min(quality):.0f}-{100 * max(quality):.0f})", flush=True)


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag, rate = parser.add_argument, number(float, above=0)
    flag("--method", choices=["ddpm", "ddgan", "siddm"], default="ddgan", help="what to train")
    flag("--T", type=number(int, 1, 10**6), help="denoising steps T; 1: an ordinary GAN (default: 4, 1000 for ddpm)")
    flag("--objective", choices=list(OBJECTIVES), default="js", help="what D estimates, section 2.4, for ddgan")
    flag("--r1", type=number(float, 0), help="gamma of R1, for ddgan (default: 0.005; for wasserstein 0)")
    flag("--lr-g", type=rate, default=LR, help="Adam's learning rate of G or eps_theta, falling to 0 as a cosine")
    flag("--lr-d", type=rate, help="the same for D (default: 0.004, but 0.001 for siddm)")
    flag("--energy", type=number(float, 0), default=0.0, help="weight of the energy score in G's loss, for ddgan")
    flag("--afd", type=number(float, 0), default=1.0, help="weight lambda_AFD, for siddm")
    flag("--reg", type=number(float, 0), default=1.0, help="weight of the regulariser, for siddm")
    flag("--z-dim", type=number(int, 0), default=8, help="dimensions of the latent z; 0 makes G deterministic")
    flag("--steps", type=number(int, 1), default=6000, help="optimiser steps")
    flag("--batch", type=number(int, 1), default=256, help="points in a step")
    flag("--seed", type=cli.SEED, default=0, help="of everything random; of the first run of --table")
    flag("--table", action="store_true", help="print Table 1 of Xu et al. 2023, with seven seeds, instead")
    flag("--out", type=cli.path, default="toy.png", help="the picture")
    args = parser.parse_args(argv)
    options = {name: value for name, value in vars(args).items() if name not in ("method", "T", "seed", "table", "out")}
    if args.table:
        for name in ("method", "T", "afd", "out"):
            if getattr(args, name) != parser.get_default(name):
                raise BadInput(f"--{name} {getattr(args, name)} has no meaning with --table: leave it out")
        return table(args.seed, **options)
    cli.check_writable(args.out)
    T = args.T or (1000 if args.method == "ddpm" else 4)
    start = time.perf_counter()
    network, diffusion = train(args.method, T, args.seed, **options)
    seconds = time.perf_counter() - start
    path = sample(network, diffusion, SAMPLES)
    modes, quality, frechet, sliced = score(path[-1], draw(SAMPLES)).values()
    draw_figure(network, diffusion, path, f"{args.method}, T = {T}", args.out)
    print(f"{args.method}, T = {T}: {modes} of 25 modes, {100 * quality:.1f} % high-quality samples, Frechet distance "
          f"{frechet:.4f}, sliced Wasserstein {sliced:.4f} ({SAMPLES} samples, seed {args.seed}, {args.steps} steps of "
          f"{args.batch} in {seconds:.0f} s)\nwrote {args.out}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # more gain nothing with networks so small, and cost much on a busy machine
    cli.script(main)
