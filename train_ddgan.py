"""Train a DDGAN, sections 2.3, 2.4, 3.2, 3.3: each of T large denoising steps is a conditional GAN.

    python train_ddgan.py                                       # sized for a GPU
    python train_ddgan.py --preset cpu                          # an hour on one CPU core
    python train_ddgan.py --objective hellinger --out runs/hellinger

Writes into runs/ddgan what train_ddpm.py writes into runs/ddpm. Watch gap_1 .. gap_T, the mean of V(real) - V(fake)
for each t: it should be clearly positive at t = 1 and fall with t. The losses say little, because at large t
real and fake are both almost noise.
"""

import sys

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from data import BadInput, load, normalize, number, one_line_errors
from losses import GENERATOR_LOSSES, OBJECTIVES, WASSERSTEIN, discriminator_loss, gradient_penalty, r1_penalty
from train_ddpm import Run, training_parser
from unet import Discriminator, bf16_autocast

R1_EVERY = 16  # Karras et al. 2020, sec. 3.1: the penalty at every 16th step, 16 times as large
GP = 10  # Gulrajani et al. 2017, sec. 4. At every step: added lazily, as R1 is, it leaves D behind G

# What each objective trains with if the flags do not say otherwise. README, "Section 2.4", says what was tried.
RECIPES = {
    # non-saturating, as eq. (9); the rates and the R1 that served best among those tried with small batches
    "js": {"lr_g": 2e-4, "lr_d": 8e-4, "r1": 0.1, "drift": 0.0, "generator": "non-saturating"},
    # (21), with the printed V as -V. G's gradient exp(V) vanishes where D is sure of a fake, which R1 prevents
    "hellinger": {"lr_g": 2e-4, "lr_d": 8e-4, "r1": 0.1, "drift": 0.0, "generator": "minimax"},
    # (24), with the printed V as -V. G's gradient is 1 for every V; with R1 0.01 it drops modes
    "reverse-kl": {"lr_g": 2e-4, "lr_d": 8e-4, "r1": 0.1, "drift": 0.0, "generator": "minimax"},
    # (27): nothing but differences of tanh(V) count, so without drift all V leave for where tanh is flat, by step 500.
    # G at half of js's rate, so that D leads from the start: at js's the kinds of garments lost their balance
    "total-variation": {"lr_g": 1e-4, "lr_d": 8e-4, "r1": 0.1, "drift": 0.01, "generator": "minimax"},
    # the gradient penalty of v2 (31) takes the place of R1; with a faster G D fell behind, with a slower one it leads too far
    "wasserstein": {"lr_g": 1e-4, "lr_d": 8e-4, "r1": 0.0, "drift": 0.0, "generator": "minimax"},
    # minimax's -exp(V - 1) gives G no gradient where D is sure of a fake; a fake that D takes for real costs exp(V - 1),
    # and without drift and R1 of 0.1 such fakes throw D back, and G makes a few shapes only
    "kl": {"lr_g": 2e-4, "lr_d": 8e-4, "r1": 0.1, "drift": 0.1, "generator": "non-saturating"},
    # minimax would push fakes with V < -2 the wrong way; the best V, 2 (q/p - 1), has no upper bound: drift gives it one
    "pearson": {"lr_g": 2e-4, "lr_d": 8e-4, "r1": 0.01, "drift": 0.1, "generator": "non-saturating"},
}

# What differs with one step and, for an objective whose G minimises the bound, with two or three: x_1 shows little of x_0
# (alpha_bar_1 is 0.08 at T = 2, 0.32 at 3), so D would soon win on clean images. R1 slows it down, js's rates let G keep up
FEW_STEPS = {"lr_g": 2e-4, "lr_d": 8e-4, "r1": 0.5}


def main():
    parser = training_parser(__doc__, T=4, out="runs/ddgan")
    flag = parser.add_argument
    flag("--objective", choices=list(OBJECTIVES), default="js", help="what D estimates and G minimises, section 2.4; "
         "it and T set the defaults of the next five, shown here for js and T = 4")
    flag("--generator", choices=list(GENERATOR_LOSSES), help="G's loss: its part of the bound, or the one that does not saturate")
    flag("--lr-g", type=number(float, above=0), help="Adam's learning rate for G, falling to 0 as a cosine")
    flag("--lr-d", type=number(float, above=0), help="Adam's for D, constant; a D that falls behind G stays at chance")
    flag("--r1", type=number(float, 0), help="weight gamma of the R1 penalty; 0 is none, too much blinds D")
    flag("--drift", type=number(float, 0), help="weight of a penalty on V^2, which keeps D's outputs near 0; 0 is none")
    flag("--z-dim", type=number(int, 0), default=64, help="dimensions of the latent z, of which G sees the direction; 0 is none")
    parser.set_defaults(**RECIPES["js"])
    known = parser.parse_args()
    recipe = RECIPES[known.objective]
    if known.T == 1 or known.T <= 3 and recipe["generator"] == "minimax":
        recipe = recipe | {name: value for name, value in FEW_STEPS.items() if recipe[name]}  # Wasserstein has no R1
    parser.set_defaults(**recipe)
    run = Run("DDGAN", parser, cpu={"steps": 8500, "batch": 32, "width": 40})
    args, G, diffusion = run.args, run.model.network, run.model.diffusion
    if args.T == 1 and args.batch % 4:
        raise BadInput(f"--batch {args.batch} with --T 1: D compares images four by four, so give a multiple of 4")

    images = load("train", args.data).to(args.device)  # uint8 (N, 1, 28, 28)
    # At T = 1 x_t says nothing of x_0, and without stddev G makes one shape of all noise
    D = Discriminator(**run.sizes, stddev=args.T == 1).to(args.device)
    betas = (0.5, 0.9)  # DDGAN, Table 6
    optimizer_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=betas, fused=True)
    optimizer_D = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=betas, fused=True)
    # Only G's rate falls. While G moves fast the kinds of garments go round in their shares, each D chasing the last G;
    # with D's constant, D comes to lead, and they end nearer to the data's
    scheduler = CosineAnnealingLR(optimizer_G, args.steps)
    parts = {"G": G, "D": D, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D, "scheduler": scheduler}

    for _ in run.steps(check=warn_if_at_chance, **parts):
        x_0 = normalize(images[torch.randint(len(images), (args.batch,), device=args.device)])
        run.log(**train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, args, run.step))
        scheduler.step()
        run.ema.update_parameters(G)


def train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, args, step):
    """One step of D and one of G on clean data x_0 (B, ...), sections 2.3 and 2.4; returns what Run.log takes.

    args holds the flags objective, generator, r1, drift, z_dim and amp; step counts from 0 (R1 is lazy).
    """
    objective, generator_loss = OBJECTIVES[args.objective], GENERATOR_LOSSES[args.generator]
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)
    z = torch.randn(len(x_0), args.z_dim, device=x_0.device)
    x_prev, x_t = diffusion.q_pair(x_0, t)
    with bf16_autocast(x_0.device, args.amp):
        x_0_fake = G(x_t, z, t).float()
    x_prev_fake = diffusion.posterior_sample(x_0_fake, x_t, t)  # eq. (10)

    # D maximises the bound (18): real and fake in one batch, which is the same and faster
    with bf16_autocast(x_0.device, args.amp):
        V = D(torch.cat([x_prev, x_prev_fake.detach()]), torch.cat([x_t, x_t]), torch.cat([t, t]))
    V_real, V_fake = V.float().chunk(2)  # (2B,) -> 2 x (B,)
    loss_D = discriminator_loss(V_real, V_fake, objective)
    penalty = args.drift * V.float().square().mean()  # as Karras et al. 2018, appendix A.1, but on fakes too
    if args.r1 and step % R1_EVERY == 0:
        penalty += args.r1 / 2 * R1_EVERY * r1_penalty(D, x_prev, x_t, t)
    if objective is WASSERSTEIN:
        penalty += GP * gradient_penalty(D, x_prev, x_prev_fake, x_t, t)
    optimizer_D.zero_grad()
    (loss_D + penalty).backward()
    optimizer_D.step()

    # G minimises it, or takes eq. (9), against the D just updated, with the same fakes
    D.requires_grad_(False)
    with bf16_autocast(x_0.device, args.amp):
        V_fake_new = D(x_prev_fake, x_t, t)
    loss_G = generator_loss(V_fake_new, objective)
    optimizer_G.zero_grad()
    loss_G.backward()
    optimizer_G.step()
    D.requires_grad_(True)

    one_hot = F.one_hot(t, diffusion.T + 1).float()  # (B,) -> (B, T+1)
    return {"loss_D": loss_D, "loss_G": loss_G, "gap": ((V_real - V_fake).detach() @ one_hot, one_hot.sum(0))}


def warn_if_at_chance(row):
    """Say so when D cannot tell real from fake even at t = 1: with bad samples that is a failed run, no equilibrium."""
    if abs(row["gap_1"]) < 0.1:
        tqdm.write(f"step {row['step']}: V(real) - V(fake) is {row['gap_1']:.3f} at t = 1, so D is at chance. If the samples "
                   "are bad: lower --lr-g, raise --lr-d or change the penalties", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
