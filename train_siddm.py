"""Train a SIDDM, paper 004: DDGAN's steps, but only the marginals of x_{t-1} are matched by a GAN.

    python train_siddm.py                     # sized for a GPU
    python train_siddm.py --preset cpu        # an hour and a half on one CPU core

The joint distribution of (x_{t-1}, x_t) is matched in the order q(x_{t-1}) q(x_t | x_{t-1}): a critic that does not see
x_t compares the marginals, and the conditionals, Gaussian in the data, by the auxiliary forward diffusion (AFD),
KL(p_theta(x_t | x_{t-1}) || q(x_t | x_{t-1})) as far as a regression C_psi can tell. Writes into runs/siddm what
train_ddgan.py writes into runs/ddgan; afd, the AFD term in nats a dimension, should stay small and positive.
"""

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from data import load, normalize, number, one_line_errors
from diffusion import SCHEDULES
from losses import discriminator_loss, forward_nll, non_saturating_loss
from train_ddgan import warn_if_at_chance
from train_ddpm import Run, training_parser
from unet import Critic, bf16_autocast


def main():
    parser = training_parser(__doc__, T=4, out="runs/siddm")
    flag = parser.add_argument
    flag("--lr-g", type=number(float, above=0), default=2e-4, help="Adam's learning rate for G, falling to 0 as a cosine")
    flag("--lr-d", type=number(float, above=0), default=8e-4, help="the same for D; one that falls behind G stays at chance")
    flag("--afd", type=number(float, 0), default=1.0, help="weight lambda_AFD of the AFD term; 0 matches the marginals only")
    flag("--reg", type=number(float, 0), default=1.0, help="weight of D's regulariser (14), to predict x_0 from a real x_{t-1}")
    flag("--schedule", choices=list(SCHEDULES), default="cosine", help="of the forward process; paper 004 has the cosine")
    flag("--z-dim", type=number(int, 0), default=64, help="dimensions of the latent z, of which G sees the direction; 0 is none")
    run = Run("SIDDM", parser, cpu={"steps": 6000, "batch": 32, "width": 40})
    args, G, diffusion = run.args, run.model.network, run.model.diffusion

    images = load("train", args.data).to(args.device)  # uint8 (N, 1, 28, 28)
    D = Critic(**run.sizes).to(args.device)
    betas = (0.5, 0.9)  # DDGAN, Table 6
    optimizer_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=betas, fused=True)
    optimizer_D = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=betas, fused=True)
    scheduler_G, scheduler_D = CosineAnnealingLR(optimizer_G, args.steps), CosineAnnealingLR(optimizer_D, args.steps)
    parts = {"G": G, "D": D, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    parts |= {"scheduler_G": scheduler_G, "scheduler_D": scheduler_D}

    for _ in run.steps(check=warn_if_at_chance, **parts):
        x_0 = normalize(images[torch.randint(len(images), (args.batch,), device=args.device)])
        run.log(**train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, args))
        scheduler_G.step()
        scheduler_D.step()
        run.ema.update_parameters(G)


def train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, args):
    """One step of D with C_psi and one of G on clean data x_0 (B, ...), paper 004, (13), (14); returns what Run.log takes.

    args holds the flags afd, reg, z_dim and amp.
    """
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)
    z = torch.randn(len(x_0), args.z_dim, device=x_0.device)
    x_prev, x_t = diffusion.q_pair(x_0, t)
    with bf16_autocast(x_0.device, args.amp):
        x_0_fake = G(x_t, z, t).float()
    x_prev_fake = diffusion.posterior_sample(x_0_fake, x_t, t)  # eq. (10)

    # D tells the marginals apart, C_psi predicts x_t from the fakes (13), the regulariser x_0 from the real (14)
    with bf16_autocast(x_0.device, args.amp):
        V, C, x_0_psi = D(torch.cat([x_prev, x_prev_fake.detach()]), torch.cat([t, t]))
    V_real, V_fake = V.float().chunk(2)  # (2B,) -> 2 x (B,)
    loss_D = discriminator_loss(V_real, V_fake)
    loss_C = forward_nll(x_t, C.chunk(2)[1], t, diffusion)
    regulariser = F.mse_loss(x_0_psi.chunk(2)[0].float(), x_0)
    optimizer_D.zero_grad()
    (loss_D + loss_C + args.reg * regulariser).backward()
    optimizer_D.step()

    # G: the marginals by (9), the conditionals by cross-entropy - entropy, C_psi's likelihood standing for the latter
    D.requires_grad_(False)
    with bf16_autocast(x_0.device, args.amp):
        V_fake_new, C_new, _ = D(x_prev_fake, t)
    loss_G = non_saturating_loss(V_fake_new)
    afd = forward_nll(x_t, x_prev_fake, t, diffusion) - forward_nll(x_t, C_new, t, diffusion)
    optimizer_G.zero_grad()
    (loss_G + args.afd * afd).backward()
    optimizer_G.step()
    D.requires_grad_(True)

    one_hot = F.one_hot(t, diffusion.T + 1).float()  # (B,) -> (B, T+1)
    gap = ((V_real - V_fake).detach() @ one_hot, one_hot.sum(0))
    return {"loss_D": loss_D, "loss_G": loss_G, "loss_C": loss_C, "afd": afd, "regulariser": regulariser, "gap": gap}


if __name__ == "__main__":
    with one_line_errors():
        main()
