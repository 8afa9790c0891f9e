"""Draw images from trained checkpoints: the rows of figures 2, 4, 6-9.

    python sample.py weights/ddgan.pt                                  # a grid of 64 in samples.png
    python sample.py weights/ddpm.pt weights/ddgan.pt --sampler ddim --steps 50 -n 12
    python sample.py weights/ddgan.pt -n 10000 --npy samples.npy       # for fid.py, or any other FID
    python sample.py weights/ddpm.pt weights/ddgan.pt --denoise 0.75 -n 6    # section 2.2: what x_0 may x_t have come from?

A checkpoint rebuilds its own network, so its path is all that is needed. Prints the network evaluations per image
(NFE) and the images per second.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import time

import numpy as np
import torch

from cli import BadInput, number, write_atomically
from data import image_grid, label, normalize, save_figure, save_grid, subplots, to_uint8
from data import load as load_images
from model import add_sampler_flags, load, sampler_flags


def denoise(model, x_0, s, draws, seed=0):
    """Noise each x_0, uint8 (n, C, H, W), to t = s T, and predict it back: uint8 x_t and, `draws` times, x_0 (n, draws, C, H, W).

    Raises BadInput if s T is no step of the model.
    """
    if abs(s * model.T - round(s * model.T)) > 1e-6 or round(s * model.T) < 1:  # 0.29 * 100 is 28.999999999999996
        raise BadInput(f"--denoise {s} is no step of this {model.method}: choose a multiple of 1/{model.T}")
    t = torch.full((len(x_0) * draws,), round(s * model.T), device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        eps = torch.randn(x_0.shape)  # on the CPU, so that every model gets the same
        x_t = model.diffusion.q_sample(normalize(x_0).to(model.device), t[:len(x_0)], eps.to(model.device))
        x_0 = model.predict_x_0(x_t.repeat_interleave(draws, dim=0), t)  # (n draws, C, H, W)
    return to_uint8(x_t).cpu(), to_uint8(x_0).cpu().unflatten(0, (-1, draws))


def save_rows(rows, path):
    """Write a figure with a labelled row for each entry of rows: pairs (label, uint8 images (N, C, H, W)) of one N."""
    n = len(rows[0][1])
    figure, axes = subplots(len(rows), figsize=(0.5 * n + 2, 0.55 * len(rows)), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows):
        axis.imshow(image_grid(images, columns=n), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[], frame_on=False)
    save_figure(figure, path)


def save_columns(columns, path):
    """Write a figure of columns side by side, each a title and uint8 images (n, k, C, H, W) in n rows of k."""
    n = len(columns[0][1])
    widths = [images.shape[1] for _, images in columns]
    figure, axes = subplots(1, len(columns), figsize=(0.6 * sum(widths), 0.6 * n + 0.4), width_ratios=widths, layout="constrained")
    for axis, (title, images) in zip(axes, columns):
        axis.imshow(image_grid(images.flatten(0, 1), columns=images.shape[1]), interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    save_figure(figure, path)


def draw_denoising(args, models):
    """--denoise: the figure of section 2.2, a DDPM's mean of all possible x_0 beside a generator's draws."""
    for name in ("npy", "sampler", "steps", "eta", "variance"):
        if getattr(args, name) is not None:
            raise BadInput(f"--{name} {getattr(args, name)} has no meaning with --denoise, which draws no samples: leave it out")
    data = models[0].args["data"] if args.data is None else args.data
    x_0 = load_images(data, "test", args.root)[:args.n]
    columns = [("x_0", x_0[:, None])]
    for model in models:
        if model.shape != tuple(x_0.shape[1:]):
            raise BadInput(f"--data {data} has images of shape {tuple(x_0.shape[1:])}, and a {model.label} of {model.shape}: give others")
        title, draws = "G(x_t, z, t) for six z", 6
        if model.method == "DDPM":
            title, draws = "mean", 1
        elif not model.z_dim:
            title, draws = "G(x_t, t)", 1
        x_t, predicted = denoise(model, x_0, args.denoise, draws, args.seed)
        if model is models[0]:
            columns.append(("x_t", x_t[:, None]))
        columns.append((f"{model.method}: {title}", predicted))
    save_columns(columns, args.out)


def main(argv=None):
    parser = cli.Parser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("checkpoints", nargs="+", type=cli.path, metavar="CHECKPOINT", help="model.pt or checkpoint.pt of a trainer")
    flag("-n", type=number(int, 1), default=64, help="images from each checkpoint; the PNG shows the first 64, or 20 a row")
    flag("--out", type=cli.path, default="samples.png", help="the grid; several checkpoints: one labelled row each")
    flag("--npy", type=cli.path, metavar="FILE", help="the raw images too: uint8 (N, C, H, W), checkpoint after checkpoint")
    flag("--denoise", type=number(float, above=0, high=1), metavar="S", help="no sampling: noise n test images to t = S T "
         "and show what each model predicts of x_0 at once, a DDPM the mean, the others six draws")
    flag("--data", type=cli.path, help="the images for --denoise (default: what the first checkpoint was trained on)")
    flag("--root", type=cli.path, default="data", help="folder for the data sets that have a name")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    cli.check_outputs(args.out, args.npy, inputs=[*args.checkpoints, *([args.data] if args.data else [])])
    models = [load(path, args.device) for path in args.checkpoints]
    if args.denoise:
        draw_denoising(args, models)
        print(f"wrote {args.out}")
        return
    if args.npy and len({model.shape for model in models}) > 1:
        raise BadInput(f"--npy {args.npy}: these checkpoints draw images of different shapes; give one --npy to each")
    flags = sampler_flags(args, models)
    evaluations = [model.sampler(**arguments)[1] for model, arguments in zip(models, flags)]  # wrong flags are told before any image
    rows, report = [], []
    for path, model, arguments, nfe in zip(args.checkpoints, models, flags, evaluations):
        start = time.perf_counter()
        images = model.generate(args.n, args.seed, args.batch, args.amp, progress=True, **arguments)
        rate = args.n / (time.perf_counter() - start)
        name = f"{model.label}, T = {model.T}" + (f", {args.sampler or 'ancestral'} {nfe}" if model.method == "DDPM" else "")
        report.append(f"{path}: {name}: {nfe} network evaluations per image, {rate:.1f} images/s on {args.device} "
                      f"(seed {args.seed}, batch {args.batch})")
        rows.append((name, images))
    if args.npy:
        with write_atomically(args.npy) as temporary, open(temporary, "wb") as file:
            np.save(file, torch.cat([images for _, images in rows]).numpy())
    if len(rows) == 1:
        save_grid(rows[0][1][:64], args.out)
    else:
        names = [name for name, _ in rows]
        save_rows([(name if names.count(name) == 1 else f"{name}\n{label(path)}", images[:20])
                   for path, (name, images) in zip(args.checkpoints, rows)], args.out)
    print(*report, "wrote " + " and ".join(filter(None, (args.out, args.npy))), sep="\n")  # after the work: printing may fail


if __name__ == "__main__":
    cli.script(main)
