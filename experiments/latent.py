"""How much the latent z decides, section 2.2: of one denoising step, and of the final samples.

    python experiments/latent.py weights/ddgan.pt weights/siddm.pt          # a minute on one core
    python experiments/latent.py runs/z0/model.pt weights/ddgan.pt --figure figures/latent.png

For each t: the share of the variance of G(x_t, z, t) over x_t and z that remains when x_t is held fixed; beside it the
same share for x_0 ~ q(x_0 | x_t), were x_0 one of the training images, and how far the mean of that q is from x_0
itself. Where these two agree there are images enough to know the truth. p_theta(x_{t-1} | x_t) of eq. (10) can only be
multimodal where the first is not 0. Last: the share of the variance of final samples that remains when x_T and the
noise of every posterior are fixed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch

from data import image_grid, label, normalize, save_figure, subplots, to_uint8
from data import load as load_images
from model import load


def share_within(draws):
    """The share of the variance of draws (n, k, ...) that is within the n groups, summed over other axes: a float."""
    within = draws.var(dim=1).mean(0).sum()  # unbiased in each group
    total = draws.flatten(0, 1).var(dim=0).sum()
    return (within / total).item()


def shares_over_images(x_0, images, t, diffusion):
    """Shares of Var(x_0), by one x_t from each of x_0 (n, ...), if x_0 is one of the images (N, ...): two floats.

    E[Var(x_0 | x_t)], and E||x_0 - E[x_0 | x_t]||^2 with the x_0 that were given. On average the two are equal if
    those are some of the images. For others the second is larger where the images are too far apart to know q.
    """
    x_t = diffusion.q_sample(x_0, torch.full((len(x_0),), t, device=x_0.device)).flatten(1)
    alpha_bar, variance = diffusion.alpha_bar[t], diffusion.one_minus_alpha_bar[t]
    images = images.flatten(1)  # (N, D)
    # Bayes' rule with (2): q(x_0 | x_t) is exp(-||x_t - sqrt(alpha_bar_t) x_0||^2 / (2 (1 - alpha_bar_t))), normalised
    log_q = (torch.sqrt(alpha_bar) * x_t @ images.T - alpha_bar / 2 * images.square().sum(1)) / variance  # (n, N)
    weights = torch.softmax(log_q.double(), dim=1).float()  # a constant for each row falls out
    mean = weights @ images  # E[x_0 | x_t], (n, D)
    within = (weights @ images.square() - mean.square()).mean(0).sum()
    error = (x_0.flatten(1) - mean).square().mean(0).sum()
    total = images.var(dim=0).sum()
    return (within / total).item(), (error / total).item()


def predictions(model, x_0, t, draws):
    """G(x_t, z, t) with `draws` z for one x_t of each x_0: x_t (n, ...) and x_0 (n, draws, ...)."""
    n = len(x_0)
    x_t = model.diffusion.q_sample(x_0, torch.full((n,), t, device=x_0.device))
    predicted = model.predict_x_0(x_t.repeat_interleave(draws, dim=0), torch.full((n * draws,), t, device=x_0.device))
    return x_t, predicted.unflatten(0, (n, draws))


@torch.no_grad()
def samples_of_z(model, n, draws):
    """Final samples (n, draws, ...): in a row x_T and the noise of each posterior are the same, z is not."""
    noise = torch.randn(model.T + 1, n, *model.shape, device=model.device)  # entry 0 is x_T, entry t for step t
    x_t = noise[0].repeat_interleave(draws, dim=0)
    for step in range(model.T, 0, -1):
        t = torch.full((len(x_t),), step, device=model.device)
        mean, variance = model.diffusion.posterior(model.predict_x_0(x_t, t), x_t, t)
        x_t = mean + torch.sqrt(variance) * noise[step].repeat_interleave(draws, dim=0)
    return x_t.unflatten(0, (n, draws))


def draw(models, x_0, path, seed):
    """The figure: for each model six x_T (rows) with six z each; below, for each t, one x_t and six predicted x_0."""
    tall = max(model.T for model in models.values())
    figure, axes = subplots(2, len(models), figsize=(3.6 * len(models), 3.6 + 0.6 * tall), squeeze=False,
                            layout="constrained", height_ratios=[6, tall])
    for (upper, lower), (name, model) in zip(axes.T, models.items()):
        torch.manual_seed(seed)
        upper.imshow(image_grid(to_uint8(samples_of_z(model, 6, 6)).cpu().flatten(0, 1), columns=6))
        upper.set_title(f"{label(name)}\na row: one x_T, one noise, six z", fontsize=8)
        rows = []
        for t in range(1, model.T + 1):
            x_t, predicted = predictions(model, x_0[t % len(x_0)][None], t, 6)
            rows.append(torch.cat([x_t, predicted[0]]))
        lower.imshow(image_grid(to_uint8(torch.cat(rows)).cpu(), columns=7))
        lower.set_title(f"t = 1..{model.T}: x_t, six G(x_t, z, t)", fontsize=8)
    for axis in axes.flat:
        axis.axis("off")
    save_figure(figure, path)


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("models", nargs="+", type=cli.path, metavar="MODEL", help="model.pt of a DDGAN or SIDDM")
    flag("--figure", type=cli.path, metavar="FILE", help="draw the figure of section 2.2, a column a model, as PNG")
    flag("--n", type=cli.number(int, 2), default=200, help="number of x_t, and of x_T")
    flag("--draws", type=cli.number(int, 2), default=8, help="number of z for each")
    flag("--root", type=cli.path, default="data", help="folder for the data sets that have a name")
    flag("--seed", type=cli.SEED, default=0, help="of all noise")
    flag("--device", type=cli.device, default=cli.default_device(), help="where to compute")
    args = parser.parse_args(argv)
    cli.check_outputs(args.figure, inputs=args.models)
    models = {path: load(path, args.device) for path in args.models}
    for path, model in models.items():
        if model.method == "DDPM":
            raise cli.BadInput(f"{path} is a DDPM, which has no z: give a DDGAN or a SIDDM")
    if len({model.args["data"] for model in models.values()}) > 1:
        raise cli.BadInput("these models were trained on different data: give them one by one")
    data = next(iter(models.values())).args["data"]
    train = normalize(load_images(data, "train", args.root)).to(args.device)
    x_0 = normalize(load_images(data, "test", args.root)[:args.n]).to(args.device)
    shapes = {model.shape for model in models.values()} | {tuple(train.shape[1:])}
    if len(shapes) > 1 or len(train) < 2:
        raise cli.BadInput(f"images and models of different shapes ({', '.join(map(str, sorted(shapes)))}), or one "
                           "image only: give others")
    if args.figure:
        draw(models, x_0, args.figure, args.seed)
    for path, model in models.items():
        torch.manual_seed(args.seed)
        print(f"{path}: {model.label}, z of {model.z_dim} dimensions, {len(x_0)} x_t, {args.draws} z each, "
              f"seed {args.seed}")
        print(f"  {'t':>3}{'share of z':>14}{'q(x_0 | x_t) over the images':>32}{'error of its mean':>21}")
        for t in range(1, model.T + 1):
            share = share_within(predictions(model, x_0, t, args.draws)[1])
            spread, error = shares_over_images(x_0, train, t, model.diffusion)
            print(f"  {t:3}{100 * share:12.2f} %{100 * spread:30.2f} %{100 * error:19.2f} %")
        share = share_within(samples_of_z(model, len(x_0), args.draws))
        print(f"  of the final samples' variance, x_T and noise fixed: {100 * share:.1f} %", flush=True)
    if args.figure:
        print(f"wrote {args.figure}")


if __name__ == "__main__":
    cli.script(main)
