"""The variational bound of a DDPM in bits per dimension, term by term: eq. (5) with the two terms that its print lacks.

    python experiments/bound.py weights/ddpm.pt        # six minutes on one core

Ho et al. 2020, eq. (5): L_0 + L_1 + ... + L_T >= -log p(x_0), with one x_t drawn for each image and t. The reverse
process is the sampler's: the predicted x_0 is clipped, and the variance is beta-tilde_t or beta_t, or the learned one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import math
from itertools import pairwise

import torch
from tqdm import tqdm

from data import load as load_images
from data import normalize
from losses import decoder_nll, prior_kl, weighted_loss
from model import load


def variances(model):
    return ("learned",) if model.learned else ("beta_tilde", "beta")


@torch.no_grad()
def bound_terms(model, x_0):
    """L_0, .., L_T in bits per dimension of x_0 (B, C, H, W) in [-1, 1]: float64 (T+1, k, B), of k variances(model)."""
    diffusion, terms = model.diffusion, []
    for step in tqdm(range(1, model.T + 1), desc="t", leave=False, disable=None):
        t, eps = torch.full((len(x_0),), step, device=x_0.device), torch.randn_like(x_0)
        x_t = diffusion.q_sample(x_0, t, eps)
        with model.autocast():
            prediction, v = model.eps_and_v(x_t, t)
        x_0_theta = diffusion.x_0_from_eps(x_t, prediction, t).clamp(-1, 1)
        choices = [diffusion.learned_variance(v, t)] if model.learned else variances(model)
        if step == 1:  # Ho et al. 2020, sec. 3.3; beta_tilde_1 is 0. Their code has beta_tilde_2 for both choices
            beta_1 = diffusion.beta[1]
            of_1 = {"beta_tilde": diffusion.beta_tilde[2] if model.T > 1 else beta_1, "beta": beta_1}
            L = [decoder_nll(x_0, x_0_theta, variance if model.learned else of_1[variance]) for variance in choices]
        else:
            eps_theta = diffusion.eps_from_x_0(x_t, x_0_theta, t)
            L = [weighted_loss(eps, eps_theta, t, diffusion, variance) for variance in choices]
        terms.append(torch.stack(L).double())
    terms.append(prior_kl(x_0, diffusion).double().expand(len(L), -1))
    return torch.stack(terms) / (math.log(2) * x_0[0].numel())


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("model", type=cli.path, metavar="MODEL", help="model.pt of a DDPM")
    flag("--n", type=cli.number(int, 2), default=128, help="number of test images")
    flag("--data", type=cli.path, help="the images (default: what the model was trained on)")
    flag("--root", type=cli.path, default="data", help="folder for the data sets that have a name")
    flag("--seed", type=cli.SEED, default=0, help="of the noise")
    flag("--device", type=cli.device, default=cli.default_device(), help="where to compute")
    args = parser.parse_args(argv)
    model = load(args.model, args.device)
    if model.method != "DDPM":
        raise cli.BadInput(f"{args.model}: a {model.method} has no likelihood; give a DDPM")
    images = load_images(args.data or model.args["data"], "test", args.root)[:args.n]
    if tuple(images.shape[1:]) != model.shape or len(images) < 2:
        raise cli.BadInput(f"{len(images)} images of shape {tuple(images.shape[1:])} for a model of {model.shape}: "
                           "give --data with two or more")
    torch.manual_seed(args.seed)
    bits = bound_terms(model, normalize(images.to(args.device)))
    T = model.T
    print(f"{args.model}: bits per dimension, {len(images)} test images, seed {args.seed}")
    print(f"{'sigma_t^2 =':20}" + "".join(f"{variance:>12}" for variance in variances(model)))
    ends = sorted({1, *(end for end in (10, 100) if end < T), T})
    parts = [("L_0", 0, 1), *((f"L_{i}..L_{j - 1}", i, j) for i, j in pairwise(ends)), ("L_T", T, T + 1)]
    for name, low, high in parts:
        print(f"{name:20}" + "".join(f"{value:12.4f}" for value in bits[low:high].sum(0).mean(1)))
    whole = bits.sum(0)  # (k, B)
    print(f"{'bound':20}" + "".join(f"{value:12.4f}" for value in whole.mean(1)))
    print(f"{'standard error':20}" + "".join(f"{value:12.4f}" for value in whole.std(1) / len(images) ** 0.5))


if __name__ == "__main__":
    cli.script(main)
