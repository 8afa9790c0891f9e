"""Draw images from trained checkpoints: the rows of figures 2, 4, 6-9.

    python sample.py weights/ddgan.pt                                  # a grid of 64 in samples.png
    python sample.py weights/ddgan.pt --temperature 0.7                # fewer broken garments, less variety
    python sample.py weights/ddpm.pt weights/ddgan.pt --sampler ddim --steps 50 -n 12
    python sample.py weights/ddgan.pt -n 10000 --npy samples.npy       # for fid.py, or any other FID
    python sample.py weights/ddpm.pt weights/ddgan.pt --denoise 0.75 -n 6    # section 2.2: which x_0 fit this x_t?
    python sample.py weights/ddgan.pt --edit sketch.png --from 2 -n 8  # garments along a sketch
    python sample.py weights/ddpm.pt weights/ddgan.pt --chain          # x_T, ..., x_0, and what is predicted on the way

A checkpoint rebuilds its own network, so its path is all that is needed. Prints the network evaluations per image
(NFE) and the images per second.
"""

import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import io
import math

import numpy as np
import torch

from cli import BadInput, number, one_line, write_atomically
from data import image_grid, label, normalize, opaque, save_figure, save_grid, subplots, to_uint8
from data import load as load_images
from model import SAMPLER_FLAGS, add_sampler_flags, load, sampler_flags, seeded


def denoise(model, x_0, s, draws, seed=0):
    """Noise each x_0, uint8 (n, C, H, W), to t = s T, and predict it back `draws` times.

    Returns uint8 x_t (n, C, H, W) and x_0 (n, draws, C, H, W). Raises BadInput unless s T is a step of the model.
    """
    if abs(s * model.T - round(s * model.T)) > 1e-6 or round(s * model.T) < 1:  # 0.29 * 100 is 28.999999999999996
        raise BadInput(f"--denoise {s}: this {model.method} has T = {model.T} steps, choose a multiple of 1/{model.T}")
    t = torch.full((len(x_0) * draws,), round(s * model.T), device=model.device)
    with seeded(seed):
        eps = torch.randn(x_0.shape)  # on the CPU, so that every model gets the same
        x_t = model.diffusion.q_sample(normalize(x_0).to(model.device), t[:len(x_0)], eps.to(model.device))
        x_0 = model.predict_x_0(x_t.repeat_interleave(draws, dim=0), t)  # (n draws, C, H, W)
    return to_uint8(x_t).cpu(), to_uint8(x_0).cpu().unflatten(0, (-1, draws))


def load_picture(path, shape):
    """One image file, cut and scaled to a model's shape (C, H, W), C 1 (grey) or 3: uint8, or BadInput."""
    from PIL import Image, ImageOps

    C, H, W = shape
    if C not in (1, 3):
        raise BadInput(f"{path} is grey or in colour, and this model's images have {C} channels: use another model")
    try:
        with Image.open(path) as image:
            picture = np.array(ImageOps.fit(opaque(image, "L" if C == 1 else "RGB"), (W, H)))
    except Exception as error:  # a damaged file can raise nearly anything
        raise BadInput(f"{path} cannot be read as an image ({one_line(error)[:150]}): give a PNG or another "
                       "image file") from error
    return torch.from_numpy(picture).view(H, W, C).permute(2, 0, 1).contiguous()


def save_rows(rows, path):
    """Write a figure with a labelled row for each entry of rows: pairs (label, uint8 images (N, C, H, W))."""
    n = max(len(images) for _, images in rows)
    figure, axes = subplots(len(rows), figsize=(0.5 * n + 2, 0.55 * len(rows)), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows):
        blank = images.new_full((n - len(images), *images.shape[1:]), 255)
        axis.imshow(image_grid(torch.cat([images, blank]), columns=n), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[], frame_on=False)
    save_figure(figure, path)


def save_columns(columns, path):
    """Write a figure of columns side by side, each a title and uint8 images (n, k, C, H, W) in n rows of k."""
    n = len(columns[0][1])
    widths = [images.shape[1] for _, images in columns]
    figure, axes = subplots(1, len(columns), figsize=(0.6 * sum(widths), 0.6 * n + 0.4), width_ratios=widths,
                            layout="constrained")
    for axis, (title, images) in zip(axes, columns):
        axis.imshow(image_grid(images.flatten(0, 1), columns=images.shape[1]), interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    save_figure(figure, path)


def draw_denoising(args, models):
    """--denoise: the figure of section 2.2, a DDPM's mean of all possible x_0 beside a generator's draws."""
    for name in ("npy", "edit", "from", "chain", *SAMPLER_FLAGS):
        value = getattr(args, "start" if name == "from" else name)
        if value is not None and value is not False:
            raise BadInput(f"--{name} has no meaning with --denoise, which draws no samples: leave it out")
    data = models[0].args["data"] if args.data is None else args.data
    x_0 = load_images(data, "test", args.root)[:args.n]
    columns = [("x_0", x_0[:, None])]
    for model in models:
        if model.shape != tuple(x_0.shape[1:]):
            raise BadInput(f"--data {data} has images of shape {tuple(x_0.shape[1:])}, and a {model.label} of "
                           f"{model.shape}: give others")
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


def chain(model, n, seed=0, amp=None, **sampler_arguments):
    """Draw n images, and return all of the chain: a list of (t, x_t, predicted x_0), uint8 (n, C, H, W), t falling."""
    steps = []

    def note(network, inputs, output):
        x_t, t = inputs[0], inputs[-1]  # (x_t, t) of a denoiser, (x_t, z, t) of a generator
        if model.method == "DDPM":
            output = model.diffusion.x_0_from_eps(x_t, model.eps_and_v_from(output, x_t, t)[0], t)
        steps.append((t[0], x_t, output.float().clamp(-1, 1)))  # on the device still: to fetch it would wait for that

    with model.network.register_forward_hook(note):
        images = model.generate(n, seed, batch=n, amp=amp, **sampler_arguments)
    return [*((t.item(), to_uint8(x_t).cpu(), to_uint8(x_0).cpu()) for t, x_t, x_0 in steps), (0, images, images)]


def draw_chain(args, models, flags, edits):
    """--chain: for each model one sample at up to eleven times, and below the x_0 predicted there; a .gif moves."""
    moves = args.out.lower().endswith(".gif")
    n = min(args.n, 64) if moves else 1
    chains = [chain(model, n, args.seed, args.amp, edit=edit, **arguments)
              for model, arguments, edit in zip(models, flags, edits)]
    names = names_of(args, models, [len(steps) - 1 for steps in chains])
    if moves:
        return save_gif(names, chains, args.out)
    rows = []
    for name, steps in zip(names, chains):
        shown = [steps[round(i * (len(steps) - 1) / 10)] for i in range(11)] if len(steps) > 11 else steps
        times = ", ".join(str(step[0]) for step in shown) if len(shown) < 6 else f"{shown[0][0]}, {shown[1][0]}, ..., 0"
        for what, index in ((f"x_t, t = {times}", 1), ("predicted x_0", 2)):
            rows.append((f"{name}\n{what}", torch.stack([step[index][0] for step in shown])))
    save_rows(rows, args.out)


def save_gif(names, chains, path):
    """Write chains side by side as a GIF of seven seconds: x_t above, the predicted x_0 below, all in the same time."""
    from PIL import Image

    figure, axes = subplots(2, len(chains), figsize=(3 * len(chains), 6.3), squeeze=False, layout="constrained")
    grids, pictures, frames = [], [], 50
    for steps, column in zip(chains, axes.T):
        columns = math.ceil(math.sqrt(len(steps[0][1])))
        grids.append([[t, image_grid(x_t, columns), image_grid(x_0, columns)] for t, x_t, x_0 in steps])
        for axis, title, grid in zip(column, ("", "predicted x_0"), grids[-1][0][1:]):
            axis.imshow(grid, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.axis("off")
    for frame in range(frames + 1):
        for name, steps, column in zip(names, grids, axes.T):
            t, *shown = steps[frame * (len(steps) - 1) // frames]
            column[0].set_title(f"{name}\nx_t, t = {t}", fontsize=8)
            for axis, grid in zip(column, shown):
                axis.images[0].set_data(grid)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=80)  # all of one size, so not save_figure's
        pictures.append(Image.open(png).convert("P", palette=Image.Palette.ADAPTIVE))
    with write_atomically(path) as temporary:
        durations = [80] * frames + [3000]
        pictures[0].save(temporary, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def names_of(args, models, evaluations):
    """The models' names for a figure, with a DDPM's sampler and evaluations, with the file's where two are alike."""
    names = [f"{model.label}, T = {model.T}" for model in models]
    names = [f"{name}, {args.sampler or 'ancestral'} {nfe}" if model.method == "DDPM" else
             ", ".join(filter(None, [name, model.sampler_name(temperature=args.temperature)]))
             for name, model, nfe in zip(names, models, evaluations)]
    return [name if names.count(name) == 1 else f"{name}\n{label(path)}" for name, path in zip(names, args.checkpoints)]


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("checkpoints", nargs="+", type=cli.path, metavar="CHECKPOINT", help="a run's folder, or its model.pt")
    flag("-n", type=number(int, 1), default=64, help="images from each checkpoint; the PNG shows the first 64, or 20 a "
         "row, after --edit's picture; --chain the first")
    flag("--out", type=cli.path, default="samples.png", help="the grid; several checkpoints: one labelled row each")
    flag("--npy", type=cli.path, metavar="FILE", help="the raw images too, uint8 (N, C, H, W), model after model")
    flag("--denoise", type=number(float, above=0, high=1), metavar="S", help="no sampling: noise n test images to "
         "t = S T and show what each model predicts of x_0 at once, a DDPM the mean, the others six draws")
    flag("--edit", type=cli.path, metavar="FILE", help="begin from this picture, fitted to the model and noised to t "
         "as --from says, instead of from noise")
    flag("--from", type=number(int, 1), dest="start", metavar="t", help="with --edit: near 1 the picture stays, near T "
         "it is forgotten")
    flag("--chain", action="store_true", help="show the trajectory of one image: x_t and the predicted x_0, at up to "
         "eleven times; as an --out .gif, of -n images, at most 64")
    flag("--data", type=cli.path, help="the images for --denoise (default: what the first checkpoint was trained on)")
    flag("--root", type=cli.path, default="data", help="folder for the data sets that have a name")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    cli.check_outputs(args.out, args.npy, inputs=[*args.checkpoints, *filter(None, (args.data, args.edit))])
    models = [load(path, args.device) for path in args.checkpoints]
    if args.out.lower().endswith(".gif") and not args.chain:
        raise BadInput(f"--out {args.out}: only --chain makes a GIF; name a .png")
    if args.denoise:
        draw_denoising(args, models)
        print(f"wrote {args.out}")
        return
    if args.chain and args.npy:
        raise BadInput(f"--npy {args.npy} has no meaning with --chain, which writes its figure only: leave it out")
    if (args.edit is None) != (args.start is None):
        raise BadInput("--edit FILE and --from t belong together: give both, or neither")
    if args.npy and len({model.shape for model in models}) > 1:
        raise BadInput(f"--npy {args.npy}: these checkpoints draw images of different shapes; give one --npy to each")
    flags = [arguments | {"start": args.start} for arguments in sampler_flags(args, models)]
    # before any image, so that wrong flags are reported first
    evaluations = [model.sampler(**arguments)[1] for model, arguments in zip(models, flags)]
    edits = [load_picture(args.edit, model.shape).expand(args.n, -1, -1, -1) if args.edit else None for model in models]
    if args.chain:
        draw_chain(args, models, flags, edits)
        print(f"wrote {args.out}")
        return
    rows, report = [], []
    names = names_of(args, models, evaluations)
    for path, name, model, arguments, nfe, edit in zip(args.checkpoints, names, models, flags, evaluations, edits):
        images, seconds = model.generate_timed(args.n, args.seed, args.batch, amp=args.amp, edit=edit, **arguments)
        report.append(f"{path}: {' '.join(name.split())}: {nfe} network evaluations per image, {args.n / seconds:.1f} "
                      f"images/s on {args.device} (seed {args.seed}, batch {args.batch})")
        rows.append((name, images))
    if args.npy:
        with write_atomically(args.npy) as temporary, open(temporary, "wb") as file:
            np.save(file, torch.cat([images for _, images in rows]).numpy())
    if args.edit:  # the picture as the models saw it, before what became of it
        rows = [(name, torch.cat([edit[:1], images])) for (name, images), edit in zip(rows, edits)]
    if len(rows) == 1:
        save_grid(rows[0][1][:64], args.out)
    else:
        save_rows([(name, images[:20]) for name, images in rows], args.out)
    written = " and ".join(filter(None, (args.out, args.npy)))
    print(*report, f"wrote {written}", sep="\n")  # after the work: printing may fail


if __name__ == "__main__":
    cli.script(main)
