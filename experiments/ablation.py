"""What a DDPM predicts and by which loss it learns: the ablation of Ho et al. 2020, Table 2.

    python experiments/ablation.py --predict x_0 --loss weighted --out runs/x_0-weighted

The network predicts the noise eps, the clean image x_0, or the posterior's mean; the loss is that prediction's mean
square error (L_simple), (6), which weights it as the bound does, or the bound itself, with a variance of each pixel
that the network predicts too. train_ddpm.py is the case eps, simple. Writes what train_ddpm.py writes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from losses import decoder_nll, weighted_loss
from model import PREDICTIONS, eps_from, split_v
from run import Run, parse, training_parser


def train_step(network, optimizer, x_0, diffusion, predict="eps", loss="simple", amp=False):
    """Algorithm 1 of Ho et al. 2020 on x_0 (B, ...) with the target `predict` and a loss; returns the loss for the log.

    predict: one of PREDICTIONS; loss: "simple", "weighted" or "bound".
    """
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)
    eps = torch.randn_like(x_0)
    x_t = diffusion.q_sample(x_0, t, eps)
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=amp):
        output, v = split_v(network(x_t, t).float(), x_t)
    if loss == "bound":  # L_{t-1} for t >= 2 and L_0, Ho et al. 2020, eq. (5), at a random t
        eps_theta, variance = eps_from(predict, output, x_t, t, diffusion), diffusion.learned_variance(v, t)
        of_x_0 = decoder_nll(x_0, diffusion.x_0_from_eps(x_t, eps_theta, t), variance)
        nats = torch.where(t == 1, of_x_0, weighted_loss(eps, eps_theta, t.clamp(min=2), diffusion, variance))  # (B,)
        value = nats.mean() / x_0[0].numel()
    elif loss == "weighted":  # (6) is infinite at t = 1, where the bound has decoder_nll; ours: the weight of t = 2
        nats = weighted_loss(eps, eps_from(predict, output, x_t, t, diffusion), t.clamp(min=2), diffusion)  # (B,)
        value = nats.mean() / x_0[0].numel()
    else:
        target = {"eps": eps, "x_0": x_0, "mean": diffusion.posterior(x_0, x_t, t)[0]}[predict]
        value = (target - output).square().mean()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return {"loss": value}


def main(argv=None):
    parser = training_parser(__doc__, T=1000, out="runs/ablation")
    flag = parser.add_argument
    flag("--lr", type=cli.number(float, above=0), default=1e-3, help="Adam's learning rate, falling to 0 as a cosine")
    flag("--predict", choices=PREDICTIONS, default="eps", help="what the network predicts from x_t: its noise, the "
         "clean image, or the posterior's mean (for which bfloat16 has too few digits: --no-amp is then the default)")
    flag("--loss", choices=["simple", "weighted", "bound"], default="simple", help="the mean square error, (6), or "
         "the bound with a learned variance")
    args = parse(parser, argv, cpu={"steps": 7000, "batch": 64},
                 depends=lambda args: {"amp": False} if args.predict == "mean" else {})
    if args.loss != "simple" and args.T < 2:
        raise cli.BadInput(f"--loss {args.loss}: (6) begins at t = 2, so give --T 2 or more, or --loss simple")
    run = Run("DDPM", args, learned=args.loss == "bound")
    network = run.model.network
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    scheduler = CosineAnnealingLR(optimizer, args.steps)

    for _ in run.steps(network=network, optimizer=optimizer, scheduler=scheduler):
        run.log(**train_step(network, optimizer, run.batch(), run.diffusion, args.predict, args.loss, run.amp))
        scheduler.step()
        run.ema.update_parameters(network)


if __name__ == "__main__":
    cli.script(main)
