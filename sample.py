"""Draw images from trained checkpoints: the rows of figures 2, 4, 6-9.

    python sample.py weights/ddgan.pt                                  # a grid of 64 in samples.png
    python sample.py weights/ddpm.pt weights/ddgan.pt --sampler ddim --steps 50 -n 12
    python sample.py weights/ddgan.pt -n 10000 --npy samples.npy       # for fid.py, or any other FID
    python sample.py weights/ddpm.pt weights/ddgan.pt --denoise 0.75 -n 6    # section 2.2: what x_0 may x_t have come from?

A checkpoint rebuilds its own network, so its path is all that is needed. Prints the network evaluations per image
(NFE) and the images per second.
"""

import argparse
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from data import (
    BadInput,
    Parser,
    check_writable,
    load,
    normalize,
    number,
    one_line,
    one_line_errors,
    to_uint8,
    write_atomically,
)
from diffusion import Diffusion
from unet import Generator, UNet, bf16_autocast

NETWORKS = {"DDPM": UNet, "DDGAN": Generator, "SIDDM": Generator}
DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


class Model:
    """A network, the diffusion that it belongs to, and how to draw images from both.

    `args` is what a checkpoint says of its network in plain values: method (a key of NETWORKS), T, schedule and
    network (the arguments of its class), besides the trainer's flags and how far it came.
    """

    def __init__(self, args, device="cpu"):
        self.args, self.method, self.T, self.device = args, args["method"], args["T"], torch.device(device)
        self.network = NETWORKS[self.method](**args["network"]).to(device)
        self.diffusion = Diffusion(self.T, args["schedule"], device)

    @property
    def label(self):
        """How figures and tables name it: the method, a DDGAN's with its objective."""
        return f"DDGAN {self.args.get('objective', 'js')}" if self.method == "DDGAN" else self.method

    @property
    def quick(self):
        """The flags of `sampler` for a quick look: DDIM with 50 steps for a DDPM, none for the others."""
        return {"sampler": "ddim", "steps": min(50, self.T)} if self.method == "DDPM" else {}

    def autocast(self, amp=None):
        """bfloat16 autocast as amp says; if None, where the hardware has it, but not for what was trained with --no-amp."""
        return bf16_autocast(self.device, False if amp is None and self.args.get("amp") is False else amp)

    def eps_theta(self, x_t, t):
        """The noise in x_t by a DDPM, whichever of PREDICTIONS its network was trained for: (B, ...), (B,) -> (B, ...)."""
        return self.diffusion.eps_from(self.args.get("predict", "eps"), self.network(x_t, t).float(), x_t, t)

    def sampler(self, sampler=None, steps=None, eta=None, variance=None):
        """The function x_T -> x_0 that the flags ask for, and its network evaluations per image.

        sampler: "ancestral" (default) or "ddim", on `steps` of the T steps (default all), DDIM with eta (default 0),
        ancestral sampling with the variance "beta_tilde" (default) or "beta".
        Raises BadInput for what this method does not have.
        """
        if self.method != "DDPM":
            for flag, value in (("--sampler", sampler), ("--steps", steps), ("--eta", eta), ("--variance", variance)):
                if value is not None:
                    raise BadInput(f"{flag} {value} is for DDPMs; this {self.method} always takes its T = {self.T} steps: leave it out")
            return lambda x_T: self.diffusion.ddgan(self.network, x_T, self.args["network"]["z_dim"]), self.T
        if eta is not None and sampler != "ddim":
            raise BadInput(f"--eta {eta} is for --sampler ddim: add that, or leave --eta out")
        if variance is not None and sampler == "ddim":
            raise BadInput(f"--variance {variance} is for --sampler ancestral: leave it out, or give DDIM an --eta")
        if steps is not None and steps > self.T:
            raise BadInput(f"--steps {steps} is more than this checkpoint's T = {self.T}: choose from 1 to {self.T}")
        process = self.diffusion.strided(steps or self.T)
        if sampler == "ddim":
            return lambda x_T: process.ddim(self.eps_theta, x_T, eta or 0.0), process.T
        return lambda x_T: process.ancestral(self.eps_theta, x_T, variance or "beta_tilde"), process.T

    @torch.no_grad()
    def predict_x_0(self, x_t, t):
        """x_0 as it is predicted from x_t at once, (B, ...): the mean by a DDPM, else G(x_t, z, t) with a z for each."""
        if self.method == "DDPM":
            return self.diffusion.x_0_from_eps(x_t, self.eps_theta(x_t, t), t).clamp(-1, 1)
        return self.network(x_t, torch.randn(len(x_t), self.args["network"]["z_dim"], device=x_t.device), t)


def load_model(path, device="cpu"):
    """Rebuild the Model that a trainer wrote to `path` (model.pt or checkpoint.pt), with its EMA weights.

    Raises BadInput for a file that is missing, damaged or not one of ours.
    """
    saved = read_checkpoint(path, device)
    try:
        model = Model(saved["args"], device)
        model.network.load_state_dict(saved["weights"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} does not fit this project's networks ({one_line(error)[:99]}): train it again") from error
    model.network.eval().requires_grad_(False)
    return model


def read_checkpoint(path, device="cpu"):
    """The dict in a trainer's file. Raises BadInput, as load_model does."""
    way_out = "give the model.pt or checkpoint.pt that a trainer wrote"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a foreign pickle before it refuses it
            saved = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}): {way_out}") from error
    except Exception as error:  # unpickling a damaged file can raise nearly anything
        raise BadInput(f"{path} is no checkpoint, or a damaged one: {way_out}") from error
    args = saved.get("args") if isinstance(saved, dict) else None
    if not isinstance(args, dict) or args.get("method") not in [*NETWORKS] or "weights" not in saved:
        raise BadInput(f"{path} holds no {', '.join(NETWORKS)} of this project: {way_out}")
    return saved


def generate(model, n, seed=0, batch=500, amp=None, progress=False, **sampler_flags):
    """Draw n images: uint8 (n, 1, 28, 28) on the CPU. Leaves the caller's random state as it was.

    amp as for Model.autocast, sampler_flags as for Model.sampler.
    """
    sample, _ = model.sampler(**sampler_flags)
    devices = [model.device] if model.device.type == "cuda" else []
    images = []
    bar = tqdm(total=n, unit="img", disable=not progress)
    with bar, torch.random.fork_rng(devices), model.autocast(amp):
        torch.manual_seed(seed)
        for start in range(0, n, batch):
            x_T = torch.randn(min(batch, n - start), 1, 28, 28, device=model.device)
            images.append(to_uint8(sample(x_T)).cpu())
            bar.update(len(x_T))
    return torch.cat(images)


def denoise(model, x_0, s, draws, seed=0):
    """Noise each x_0, uint8 (n, 1, H, W), to t = s T, and predict it back: uint8 x_t and, `draws` times, x_0 (n, draws, 1, H, W).

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
        x_0 = model.predict_x_0(x_t.repeat_interleave(draws, dim=0), t)  # (n draws, 1, H, W)
    return to_uint8(x_t).cpu(), to_uint8(x_0).cpu().unflatten(0, (-1, draws))


def add_sampler_flags(parser):
    """The flags with which sample.py and fid.py draw images from a checkpoint."""
    flag = parser.add_argument
    flag("--sampler", choices=["ancestral", "ddim"], help="for a DDPM: Algorithm 2 (if not said), or DDIM")
    flag("--steps", type=number(int, 1), help="for a DDPM: evenly spaced steps out of its T; all if not said")
    flag("--eta", type=number(float, 0, 1), help="for DDIM: its noise, from 0 (none, if not said) to 1 (ancestral sampling)")
    flag("--variance", choices=["beta_tilde", "beta"], help="for ancestral sampling: its noise sigma_t^2, the posterior's if not said")
    flag("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of x_T, z and the noise of each step")
    flag("--batch", type=number(int, 1), default=500, help="images at a time; more is faster until memory ends")
    flag("--device", type=device, default=DEVICES[0], help="where to sample")
    flag("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the hardware has it if not said")


def sampler_flags(args, models):
    """For each model its keyword arguments of Model.sampler. In a mixed list the flags are meant for the DDPMs."""
    flags = {"sampler": args.sampler, "steps": args.steps, "eta": args.eta, "variance": args.variance}
    methods = {model.method for model in models}
    mixed = len(methods) > 1 and "DDPM" in methods
    return [{} if mixed and model.method != "DDPM" else flags for model in models]


def device(name):
    """An argparse type: a torch.device of this machine, cpu or cuda."""
    try:
        if torch.device(name).type in ("cpu", "cuda"):
            return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        pass
    raise argparse.ArgumentTypeError(f"{name} is no device of this machine: use {' or '.join(DEVICES)}")


def save_grid(images, path, columns=8):
    """Write uint8 images (N, 1, H, W) as one PNG of `columns` columns, each pixel twice as wide and high."""
    grid = make_grid(images, nrow=columns, padding=1, pad_value=255)  # (N, 1, H, W) -> (3, H', W')
    with write_atomically(path) as temporary:
        to_pil_image(grid).resize((2 * grid.shape[2], 2 * grid.shape[1]), resample=0).save(temporary, "PNG")


def save_rows(rows, path):
    """Write a figure with a labelled row for each entry of rows: pairs (label, uint8 images (N, 1, H, W)) of one N."""
    n = len(rows[0][1])
    figure, axes = plt.subplots(len(rows), figsize=(0.5 * n + 2, 0.55 * len(rows)), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows):
        row = make_grid(images, nrow=n, padding=1, pad_value=255).permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        axis.imshow(row.numpy(), interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[], frame_on=False)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def save_columns(columns, path):
    """Write a figure of columns side by side, each a title and uint8 images (n, k, 1, H, W) in n rows of k."""
    n = len(columns[0][1])
    widths = [images.shape[1] for _, images in columns]
    figure, axes = plt.subplots(1, len(columns), figsize=(0.6 * sum(widths), 0.6 * n + 0.4), width_ratios=widths, layout="constrained")
    for axis, (title, images) in zip(axes, columns):
        grid = make_grid(images.flatten(0, 1), nrow=images.shape[1], padding=1, pad_value=255)  # (n k, 1, H, W) -> (3, H', W')
        axis.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")  # -> (H', W', 3)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("checkpoints", nargs="+", metavar="CHECKPOINT", help="model.pt or checkpoint.pt of a trainer")
    flag("-n", type=number(int, 1), default=64, help="images from each checkpoint; the PNG shows the first 64, or 20 a row")
    flag("--out", default="samples.png", help="the grid; several checkpoints: one labelled row each")
    flag("--npy", metavar="FILE", help="the raw images too: uint8 (N, 1, 28, 28), checkpoint after checkpoint")
    flag("--denoise", type=number(float, above=0, high=1), metavar="S", help="no sampling: noise n test images to t = S T "
         "and show what each model predicts of x_0 at once, a DDPM the mean, the others six draws")
    flag("--data", default="data", help="where Fashion-MNIST is, for --denoise")
    add_sampler_flags(parser)
    args = parser.parse_args()
    for path in filter(None, (args.out, args.npy)):
        check_writable(path)
    if args.npy and os.path.abspath(args.npy) == os.path.abspath(args.out):
        raise BadInput(f"--npy {args.npy} is also --out: choose another name for one of them")
    models = [load_model(path, args.device) for path in args.checkpoints]
    if args.denoise:
        for name in ("npy", "sampler", "steps", "eta", "variance"):
            if getattr(args, name) is not None:
                raise BadInput(f"--{name} {getattr(args, name)} has no meaning with --denoise, which draws no samples: leave it out")
        x_0 = load("test", args.data)[:args.n]
        columns = [("x_0", x_0[:, None])]
        for model in models:
            title, draws = "G(x_t, z, t) for six z", 6
            if model.method == "DDPM":
                title, draws = "mean", 1
            elif not model.args["network"]["z_dim"]:
                title, draws = "G(x_t, t)", 1
            x_t, predicted = denoise(model, x_0, args.denoise, draws, args.seed)
            if model is models[0]:
                columns.append(("x_t", x_t[:, None]))
            columns.append((f"{model.method}: {title}", predicted))
        save_columns(columns, args.out)
        print(f"wrote {args.out}")
        return
    flags = sampler_flags(args, models)
    evaluations = [model.sampler(**its)[1] for model, its in zip(models, flags)]  # wrong flags are told before any image
    rows = []
    for path, model, its, nfe in zip(args.checkpoints, models, flags, evaluations):
        start = time.perf_counter()
        images = generate(model, args.n, args.seed, args.batch, args.amp, progress=True, **its)
        rate = args.n / (time.perf_counter() - start)
        label = f"{model.label}, T = {model.T}"
        if model.method == "DDPM":
            label += f", {args.sampler or 'ancestral'} {nfe}"
        print(f"{path}: {label}: {nfe} network evaluations per image, {rate:.1f} images/s on {args.device}")
        rows.append((label, images))
    if args.npy:
        with write_atomically(args.npy) as temporary, open(temporary, "wb") as file:
            np.save(file, torch.cat([images for _, images in rows]).numpy())
    if len(rows) == 1:
        save_grid(images[:64], args.out)
    else:
        labels = [label for label, _ in rows]
        save_rows([(label if labels.count(label) == 1 else f"{label}\n{path}", images[:20])
                   for path, (label, images) in zip(args.checkpoints, rows)], args.out)
    print("wrote " + " and ".join(filter(None, (args.out, args.npy))))


if __name__ == "__main__":
    with one_line_errors():
        main()
