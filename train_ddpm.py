"""Train the DDPM of section 3.1: Algorithm 1 of Ho et al. 2020 on the U-Net of unet.py.

    python train_ddpm.py                          # on a GPU; without one, half an hour to an hour on one CPU core
    python train_ddpm.py --data my.npy --out runs/mine

Writes into runs/ddpm: model.pt (for sample.py and fid.py), checkpoint.pt (for --resume), log.csv, grids of samples.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from run import Run, parse, training_parser


def train_step(eps_theta, optimizer, x_0, diffusion, amp=False):
    """One pass through the loop of Algorithm 1, Ho et al. 2020, on x_0 (B, ...) ~ q(x_0); returns the loss for the log.

    eps_theta(x_t, t) -> (B, ...); amp: compute it in bfloat16.
    """
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)  # t ~ Uniform({1, ..., T})
    eps = torch.randn_like(x_0)  # eps ~ N(0, I)
    x_t = diffusion.q_sample(x_0, t, eps)  # sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=amp):
        prediction = eps_theta(x_t, t)
    loss = (eps - prediction.float()).square().mean()  # ||eps - eps_theta(x_t, t)||^2, per dimension
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss}


def main(argv=None):
    parser = training_parser(__doc__, T=1000, out="runs/ddpm")
    parser.add_argument("--lr", type=cli.number(float, above=0), default=1e-3,
                        help="Adam's learning rate, falling to 0 as a cosine")
    args = parse(parser, argv, cpu={"steps": 7000, "batch": 64})
    run = Run("DDPM", args)
    network = run.model.network
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    scheduler = CosineAnnealingLR(optimizer, args.steps)  # v2, sec. 3.1

    for _ in run.steps(network=network, optimizer=optimizer, scheduler=scheduler):
        run.log(**train_step(network, optimizer, run.batch(), run.diffusion, run.amp))
        scheduler.step()
        run.ema.update_parameters(network)


if __name__ == "__main__":
    cli.script(main)
