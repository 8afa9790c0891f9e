"""Train a SIDDM, Xu et al. 2023: DDGAN's steps, but only the marginals of x_{t-1} are matched by a GAN.

    python train_siddm.py                     # on a GPU; without one, an hour on one CPU core

The joint distribution of (x_{t-1}, x_t) is matched in the order q(x_{t-1}) q(x_t | x_{t-1}): a critic that does not see
x_t compares the marginals, and the conditionals, Gaussian in the data, by the auxiliary forward diffusion (AFD),
KL(p_theta(x_t | x_{t-1}) || q(x_t | x_{t-1})) as far as a regression C_psi can tell. Writes into runs/siddm what
train_ddgan.py writes into runs/ddgan; afd, the AFD term in nats a dimension, should stay small and positive.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from losses import forward_nll, gan_loss_D, gan_loss_G, gaps
from run import Run, parse, training_parser
from unet import Critic


def train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, z_dim, afd=1.0, reg=1.0, gan=1.0, amp=False):
    """One step of D with C_psi and one of G on x_0 (B, ...), Xu et al. 2023, (13), (14); returns values for the log.

    G(x_t, z, t) -> x_0 (B, ...), z of (B, z_dim); D(x_{t-1}, t) -> V (B,), C_psi and x_0, both (B, ...). afd, reg, gan:
    weights of the AFD term, of the regulariser and of the adversarial losses; amp: compute the networks in bfloat16.
    """
    bf16 = torch.autocast(x_0.device.type, torch.bfloat16, enabled=amp)
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)
    z = torch.randn(len(x_0), z_dim, device=x_0.device)
    x_prev, x_t = diffusion.q_pair(x_0, t)
    with bf16:
        x_0_fake = G(x_t, z, t).float()
    x_prev_fake = diffusion.posterior_sample(x_0_fake, x_t, t)  # eq. (10)

    # D tells the marginals apart, C_psi predicts x_t from the fakes, the regulariser x_0 from the real: Xu et al.'s
    # (13) and (14)
    with bf16:
        V, C_psi, x_0_of_D = D(torch.cat([x_prev, x_prev_fake.detach()]), torch.cat([t, t]))
    V_real, V_fake = V.chunk(2)  # (2B,) -> 2 x (B,)
    loss_D = gan_loss_D(V_real, V_fake)  # (8)
    loss_C = forward_nll(x_t, C_psi.chunk(2)[1], t, diffusion)
    regulariser = F.mse_loss(x_0_of_D.chunk(2)[0].float(), x_0)
    optimizer_D.zero_grad()
    (gan * loss_D + loss_C + reg * regulariser).backward()
    optimizer_D.step()

    # G: the marginals by (9), the conditionals by cross-entropy - entropy, C_psi's likelihood standing for the latter
    with bf16:
        V_fake_new, C_psi_new, _ = D(x_prev_fake, t)
    loss_G = gan_loss_G(V_fake_new)  # (9)
    # x_t is the one that G was given; Xu et al. draw another forwards from the generated x_{t-1}
    afd_term = forward_nll(x_t, x_prev_fake, t, diffusion) - forward_nll(x_t, C_psi_new, t, diffusion)
    optimizer_G.zero_grad()
    (gan * loss_G + afd * afd_term).backward(inputs=[*G.parameters()])  # gradients through D, not of it
    optimizer_G.step()

    return {"loss_D": loss_D, "loss_G": loss_G, "loss_C": loss_C, "afd": afd_term, "regulariser": regulariser,
            "gap": gaps(V_real, V_fake, t, diffusion.T)}


def main(argv=None):
    parser = training_parser(__doc__, T=4, out="runs/siddm")
    flag, rate, weight = parser.add_argument, cli.number(float, above=0), cli.number(float, 0)
    flag("--lr-g", type=rate, default=1e-4, help="Adam's learning rate for G, falling to 0 as a cosine")
    flag("--lr-d", type=rate, default=8e-4, help="the same for D; one that falls behind G stays at chance")
    flag("--afd", type=weight, default=1.0, help="weight lambda_AFD of the AFD term; 0 matches the marginals only")
    flag("--gan", type=weight, default=1.0, help="weight of the adversarial losses; 0: the AFD term alone")
    flag("--reg", type=weight, default=1.0, help="weight of the regulariser: D predicts x_0 from a real x_{t-1}")
    flag("--z-dim", type=cli.number(int, 0), default=100, help="dimensions of the latent z; 0 is none")
    parser.set_defaults(schedule="cosine")  # Xu et al. 2023
    args = parse(parser, argv, cpu={"steps": 6000, "batch": 32})
    run = Run("SIDDM", args, z_dim=args.z_dim)
    G, D = run.model.network, Critic(**run.sizes).to(args.device)
    betas = (0.5, 0.9)  # Xiao et al. 2022, Table 8
    optimizer_G = torch.optim.Adam(G.parameters(), lr=args.lr_g, betas=betas, fused=True)
    optimizer_D = torch.optim.Adam(D.parameters(), lr=args.lr_d, betas=betas, fused=True)
    scheduler_G, scheduler_D = CosineAnnealingLR(optimizer_G, args.steps), CosineAnnealingLR(optimizer_D, args.steps)
    parts = {"G": G, "D": D, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    parts |= {"scheduler_G": scheduler_G, "scheduler_D": scheduler_D}

    for _ in run.steps(**parts):
        run.log(**train_step(G, D, optimizer_G, optimizer_D, run.batch(), run.diffusion, args.z_dim, afd=args.afd,
                             reg=args.reg, gan=args.gan, amp=run.amp))
        scheduler_G.step()
        scheduler_D.step()
        run.ema.update_parameters(G)


if __name__ == "__main__":
    cli.script(main)
