"""Train a DDGAN, sections 2.3, 2.4, 3.2, 3.3: each of T large denoising steps is a conditional GAN.

    python train_ddgan.py                                       # on a GPU; without one, up to an hour on one CPU core
    python train_ddgan.py --objective hellinger --out runs/hellinger

Writes into runs/ddgan: model.pt, checkpoint.pt, log.csv, grids of samples, as train_ddpm.py does. Watch gap_1 .. gap_T,
the mean of V(real) - V(fake) for each t: it should be clearly positive at t = 1 and fall with t. The losses say little,
because at large t real and fake are both almost noise. loss_D is minus the bound (18), without the penalties; for js it
is (8) less 2 log 2, and 0 means chance.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from losses import (
    GENERATOR_LOSSES,
    OBJECTIVES,
    discriminator_loss,
    energy_score,
    gaps,
    gradient_penalty,
    non_saturating_loss,
    r1_penalty,
)
from run import Run, parse, training_parser
from unet import Discriminator

# What each objective trains with at T = 4 unless flags say otherwise; one without a row here trains with js's.
# Weights: r1 of the R1 penalty, gp of the gradient penalty, drift of the penalty on V^2.
RECIPES = {
    # non-saturating, as eq. (9)
    "js": {"r1": 0.1, "gp": 0.0, "drift": 0.0, "generator": "non-saturating"},
    # (21), with the printed V as -V. G's gradient exp(V) vanishes where D is sure of a fake, which R1 prevents
    "hellinger": {"r1": 0.1, "gp": 0.0, "drift": 0.0, "generator": "minimax"},
    # (24), with the printed V as -V. G's gradient is 1 for every V; with R1 0.01 it drops modes
    "reverse-kl": {"r1": 0.1, "gp": 0.0, "drift": 0.0, "generator": "minimax"},
    # (27): only differences of tanh(V) count, so without drift all V move to where tanh is flat, by step 500
    "total-variation": {"r1": 0.1, "gp": 0.0, "drift": 0.01, "generator": "minimax"},
    # gp of v2 (31) takes the place of r1: 10 is Gulrajani et al. 2017, sec. 4's
    "wasserstein": {"r1": 0.0, "gp": 10.0, "drift": 0.0, "generator": "minimax"},
    # with minimax G's gradient exp(V - 1) vanishes where D is sure of a fake. A fake taken for real costs D exp(V - 1):
    # without drift, or with less R1, such costs throw D back, and G draws a few shapes only
    "kl": {"r1": 0.1, "gp": 0.0, "drift": 0.1, "generator": "non-saturating"},
    # minimax would push fakes with V < -2 the wrong way; the best V, 2 (q/p - 1), has no bound: drift gives it one
    "pearson": {"r1": 0.01, "gp": 0.0, "drift": 0.1, "generator": "non-saturating"},
}

# R1 with one step and, for an objective whose G minimises the bound, with two or three: the fewer the steps, the more
# of x_0 the step t = 1 must invent, where D sees clean images and soon tells them apart. A larger penalty slows it down
FEW_STEPS_R1 = 0.5


def recipe(objective, T):
    """The defaults of --r1, --gp, --drift and --generator for a key of OBJECTIVES and T steps."""
    row = RECIPES["js"] | RECIPES.get(objective, {})
    if row["r1"] and (T == 1 or (T <= 3 and row["generator"] == "minimax")):  # Wasserstein has no R1
        return row | {"r1": FEW_STEPS_R1}
    # Ours, by trial: the more the steps, the more alike are real and fake at each, and the steeper must be V, which R1
    # keeps flat. With the R1 of T = 4, D at T = 10 was at chance from step 5,000 of 15,000 on; with this it never was
    return row | {"r1": float(f"{row['r1'] * min(1, (4 / T) ** 3):.3g}")}


def lazy_r1(r1, step):
    """The weight of R1 at step 0, 1, ...: 16 r1 at every 16th and 0 between, Karras et al. 2020, sec. 3.1."""
    return 16 * r1 if step % 16 == 0 else 0.0


def train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, z_dim, objective=OBJECTIVES["js"],
               generator_loss=non_saturating_loss, r1=0.0, gp=0.0, drift=0.0, reg=0.0, energy=0.0, amp=False):
    """One step of D and one of G on clean data x_0 (B, ...), sections 2.3 and 2.4; returns losses and gaps for the log.

    G(x_t, z, t) -> x_0 (B, ...), z of (B, z_dim); D(x_{t-1}, x_t, t) -> V (B,), else ValueError; unet.Discriminator
    needs a B that is a multiple of 4, and for reg its own reg=True. r1, gp, drift, reg: weights of D's penalties,
    energy: of the energy score; amp: compute the networks in bfloat16. The defaults are js without penalties. What
    main passes for an objective NAME: row = recipe(NAME, T), OBJECTIVES[NAME], GENERATOR_LOSSES[row["generator"]],
    r1=lazy_r1(row["r1"], step), gp=row["gp"], drift=row["drift"]. Of what it returns, the losses are scalars that still
    have their graph, and gap is what losses.gaps returns.
    """
    bf16 = torch.autocast(x_0.device.type, torch.bfloat16, enabled=amp)
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)
    z = torch.randn(len(x_0), z_dim, device=x_0.device)
    x_prev, x_t = diffusion.q_pair(x_0, t)
    with bf16:
        x_0_fake = G(x_t, z, t).float()
    x_prev_fake = diffusion.posterior_sample(x_0_fake, x_t, t)  # eq. (10)

    # D maximises the bound (18): real and fake in one batch, which is faster; if 4 divides B, D's groups mix neither
    with bf16:
        V = D(torch.cat([x_prev, x_prev_fake.detach()]), torch.cat([x_t, x_t]), torch.cat([t, t]))
    V_real, V_fake = V.chunk(2)  # (2B,) -> 2 x (B,)
    loss_D = discriminator_loss(V_real, V_fake, objective)
    penalty = drift * V.float().square().mean()  # as Karras et al. 2018, appendix A.1, but on fakes too
    if r1:
        penalty += r1 / 2 * r1_penalty(D, x_prev, x_t, t)
    if gp:
        penalty += gp * gradient_penalty(D, x_prev, x_prev_fake, x_t, t)
    if reg:  # (14) of Xu et al. 2023: D also denoises, the real x_{t-1} only
        with bf16:
            x_0_of_D = D.predict_x_0(x_prev, x_t, t)
        penalty += reg * F.mse_loss(x_0_of_D.float(), x_0)
    optimizer_D.zero_grad()
    (loss_D + penalty).backward()
    optimizer_D.step()

    # G minimises the bound, or its non-saturating form as in (9), against the D just updated, with the same fakes
    with bf16:
        V_fake_new = D(x_prev_fake, x_t, t)
    loss_G = generator_loss(V_fake_new, objective)
    score = 0.0
    if energy:
        with bf16:
            x_0_fake_2 = G(x_t, torch.randn_like(z), t).float()
        score = energy_score(x_0, x_0_fake, x_0_fake_2)
    optimizer_G.zero_grad()
    (loss_G + energy * score).backward(inputs=[*G.parameters()])  # gradients through D, not of it
    optimizer_G.step()

    log = {"loss_D": loss_D, "loss_G": loss_G, "gap": gaps(V_real, V_fake, t, diffusion.T)}
    return log | {"energy": score} if energy else log


def main(argv=None):
    parser = training_parser(__doc__, T=4, out="runs/ddgan")
    flag, rate, weight = parser.add_argument, cli.number(float, above=0), cli.number(float, 0)
    # G at an eighth of D's rate, so that D leads from the start: at a quarter the kinds of garments lost their balance
    flag("--lr-g", type=rate, default=1e-4, help="Adam's learning rate for G, falling to 0 as a cosine")
    flag("--lr-d", type=rate, default=8e-4, help="Adam's for D, constant; a D that falls behind G stays at chance")
    flag("--objective", choices=list(OBJECTIVES), default="js", help="what D estimates and G minimises, section 2.4; "
         "with T it sets the defaults of --generator, --r1, --gp and --drift")
    flag("--generator", choices=list(GENERATOR_LOSSES), help="G's loss: its part of the bound, or the one that does "
         "not saturate")
    flag("--r1", type=weight, help="weight gamma of the R1 penalty; 0 is none, too much blinds D")
    flag("--gp", type=weight, help="weight of the gradient penalty of v2 (31)")
    flag("--drift", type=weight, help="weight of a penalty on V^2, which keeps D's outputs near 0; 0 is none")
    flag("--reg", type=weight, default=0.0, help="weight of SIDDM's regulariser: D predicts x_0 from real x_{t-1}")
    flag("--z-dim", type=cli.number(int, 0), default=100, help="dimensions of the latent z; 0 is none")
    flag("--energy", type=weight, default=0.0, help="weight of the energy score in G's loss, which makes G use z; "
         "ours, not the paper's")
    args = parse(parser, argv, cpu={"steps": 8500, "batch": 32}, depends=lambda args: recipe(args.objective, args.T))
    if args.batch % 4:
        raise cli.BadInput(f"--batch {args.batch}: D compares images four by four, so give a multiple of 4")
    run = Run("DDGAN", args, z_dim=args.z_dim)
    G = run.model.network
    D = Discriminator(**run.sizes, size=run.model.shape[1:], reg=args.reg > 0).to(args.device)
    betas = (0.5, 0.9)  # Xiao et al. 2022, Table 8
    optimizer_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=betas, fused=True)
    optimizer_D = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=betas, fused=True)
    # Only G's rate falls. While G moves fast the share of each kind of garment swings up and down, D chasing the last
    # G; with D's rate constant, D comes to lead, and the shares end nearer to the data's
    scheduler = CosineAnnealingLR(optimizer_G, args.steps)
    parts = {"G": G, "D": D, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D, "scheduler": scheduler}
    objective, generator_loss = OBJECTIVES[args.objective], GENERATOR_LOSSES[args.generator]

    for _ in run.steps(**parts):
        run.log(**train_step(G, D, optimizer_G, optimizer_D, run.batch(), run.diffusion, args.z_dim, objective,
                             generator_loss, r1=lazy_r1(args.r1, run.step), gp=args.gp, drift=args.drift, reg=args.reg,
                             energy=args.energy, amp=run.amp))
        scheduler.step()
        run.ema.update_parameters(G)


if __name__ == "__main__":
    cli.script(main)
