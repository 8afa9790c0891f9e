"""Draw images from trained checkpoints: the rows of figures 2, 4, 6-9.

    python sample.py weights/ddgan.pt                                  # a grid of 64 in samples.png
    python sample.py weights/ddpm.pt weights/ddgan.pt --sampler ddim --steps 50 -n 12
    python sample.py weights/ddgan.pt -n 10000 --npy samples.npy       # for fid.py, or any other FID

A checkpoint rebuilds its own network, so its path is all that is needed. Prints the network evaluations per image
(NFE) and the images per second.
"""

import argparse
import pickle
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from data import BadInput, Parser, check_writable, number, one_line, one_line_errors, to_uint8, write_atomically
from diffusion import Diffusion
from unet import Generator, UNet, bf16_autocast

NETWORKS = {"DDPM": UNet, "DDGAN": Generator}


class Model:
    """A network, the diffusion that it belongs to, and how to draw images from both.

    `args` is what a checkpoint says of its network in plain values: method ("DDPM" or "DDGAN"), T, schedule and
    network (the arguments of its class), besides the trainer's flags and how far it came.
    """

    def __init__(self, args, device="cpu"):
        self.args, self.method, self.T, self.device = args, args["method"], args["T"], torch.device(device)
        self.network = NETWORKS[self.method](**args["network"]).to(device)
        self.diffusion = Diffusion(self.T, args["schedule"], device)

    def sampler(self, sampler=None, steps=None, eta=None):
        """The function x_T -> x_0 that the flags ask for, and its network evaluations per image.

        sampler: "ancestral" (default) or "ddim", on `steps` of the T steps (default all), DDIM with eta (default 0).
        Raises BadInput for what this method does not have.
        """
        if self.method == "DDGAN":
            for flag, value in (("--sampler", sampler), ("--steps", steps), ("--eta", eta)):
                if value is not None:
                    raise BadInput(f"{flag} {value} is for DDPM checkpoints; this DDGAN always takes its T = {self.T} steps: leave it out")
            return lambda x_T: self.diffusion.ddgan(self.network, x_T, self.args["network"]["z_dim"]), self.T
        if eta is not None and sampler != "ddim":
            raise BadInput(f"--eta {eta} is for --sampler ddim: add that, or leave --eta out")
        if steps is not None and steps > self.T:
            raise BadInput(f"--steps {steps} is more than this checkpoint's T = {self.T}: choose from 1 to {self.T}")
        process = self.diffusion.strided(steps or self.T)
        if sampler == "ddim":
            return lambda x_T: process.ddim(self.network, x_T, eta or 0.0), process.T
        return lambda x_T: process.ancestral(self.network, x_T), process.T


def load_model(path, device="cpu"):
    """Rebuild the Model that a trainer wrote to `path` (model.pt or checkpoint.pt), with its EMA weights.

    Raises BadInput for a file that is missing, damaged or not one of ours.
    """
    saved = read_checkpoint(path, device)
    try:
        model = Model(saved["args"], device)
        model.network.load_state_dict(saved["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} does not fit this project's networks ({one_line(error)[:120]}): train it again") from error
    model.network.eval().requires_grad_(False)
    return model


def read_checkpoint(path, device="cpu"):
    """The dict in a trainer's file. Raises BadInput, as load_model does."""
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}): give the model.pt or checkpoint.pt that a trainer wrote") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path} is no checkpoint, or a damaged one: give the model.pt or checkpoint.pt that a trainer wrote") from error
    if not isinstance(saved, dict) or not {"args", "weights"} <= saved.keys() or saved["args"].get("method") not in NETWORKS:
        raise BadInput(f"{path} is a checkpoint of some other project: give the model.pt or checkpoint.pt that a trainer wrote")
    return saved


def generate(model, n, seed=0, batch=500, amp=None, progress=False, **sampler_flags):
    """Draw n images: uint8 (n, 1, 28, 28) on the CPU. Leaves the caller's random state as it was.

    amp: bfloat16 autocast (None: where the hardware has it); sampler_flags as for Model.sampler.
    """
    sample, _ = model.sampler(**sampler_flags)
    devices = [model.device] if model.device.type == "cuda" else []
    images = []
    with torch.random.fork_rng(devices), bf16_autocast(model.device, amp), tqdm(total=n, unit="img", disable=not progress) as bar:
        torch.manual_seed(seed)
        for start in range(0, n, batch):
            x_T = torch.randn(min(batch, n - start), 1, 28, 28, device=model.device)
            images.append(to_uint8(sample(x_T)).cpu())
            bar.update(len(x_T))
    return torch.cat(images)


def add_sampler_flags(parser):
    """The flags with which sample.py and fid.py draw images from a checkpoint."""
    flag = parser.add_argument
    flag("--sampler", choices=["ancestral", "ddim"], help="for a DDPM: Algorithm 2 (if not said), or DDIM")
    flag("--steps", type=number(int, 1), help="for a DDPM: evenly spaced steps out of its T; all if not said")
    flag("--eta", type=number(float, 0, 1), help="for DDIM: noise of each step, from 0 (deterministic, if not said) to 1 (ancestral)")
    flag("--seed", type=number(int, 0), default=0, help="of x_T, z and the noise of each step")
    flag("--batch", type=number(int, 1), default=500, help="images at a time; more is faster until memory ends")
    flag("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu", help="where to sample")
    flag("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the hardware has it if not said")


def sampler_flags(args, models):
    """For each model its keyword arguments of Model.sampler. In a mixed list the flags are meant for the DDPMs."""
    flags = {"sampler": args.sampler, "steps": args.steps, "eta": args.eta}
    mixed = len({model.method for model in models}) > 1
    return [{} if mixed and model.method == "DDGAN" else flags for model in models]


def device(name):
    """An argparse type: a torch.device that works on this machine."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name} is no device of this machine: use cpu") from error


def save_grid(images, path, columns=8):
    """Write uint8 images (N, 1, H, W) as one PNG of `columns` columns, each pixel twice as wide and high."""
    grid = make_grid(images, nrow=columns, padding=1, pad_value=255)  # (N, 1, H, W) -> (3, H', W')
    with write_atomically(path) as temporary:
        to_pil_image(grid).resize((2 * grid.shape[2], 2 * grid.shape[1]), resample=0).save(temporary, "PNG")


def save_rows(rows, path):
    """Write a figure with a labelled row for each entry of rows: {label: uint8 images (N, 1, H, W)}."""
    n = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), figsize=(0.45 * n + 2, 0.5 * len(rows)), squeeze=False)
    for axis, (label, images) in zip(axes[:, 0], rows.items()):
        axis.imshow(make_grid(images, nrow=n, padding=1, pad_value=255).permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[], frame_on=False)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="model.pt or checkpoint.pt of a trainer")
    parser.add_argument("-n", type=number(int, 1), default=64, help="images from each checkpoint")
    parser.add_argument("--out", default="samples.png", help="the grid; several checkpoints: one labelled row each")
    parser.add_argument("--npy", metavar="FILE", help="the raw images too, uint8 (N, 1, 28, 28), checkpoint after checkpoint")
    add_sampler_flags(parser)
    args = parser.parse_args()
    for path in filter(None, (args.out, args.npy)):
        check_writable(path)
    models = [load_model(path, args.device) for path in args.checkpoints]
    flags = sampler_flags(args, models)
    evaluations = [model.sampler(**its)[1] for model, its in zip(models, flags)]  # wrong flags are told before any image

    rows = {}
    for path, model, its, nfe in zip(args.checkpoints, models, flags, evaluations):
        start = time.perf_counter()
        images = generate(model, args.n, args.seed, args.batch, args.amp, progress=True, **its)
        rate = args.n / (time.perf_counter() - start)
        label = f"{model.method} T = {model.T}" + (f", {args.sampler or 'ancestral'} {nfe}" if model.method == "DDPM" else "")
        print(f"{path}: {label}, {nfe} network evaluations per image, {rate:.1f} images/s on {args.device}")
        rows[label if label not in rows else f"{label}\n{path}"] = images
    if len(rows) == 1:
        save_grid(images, args.out)
    else:
        save_rows(rows, args.out)
    if args.npy:
        with write_atomically(args.npy) as temporary, open(temporary, "wb") as file:
            np.save(file, torch.cat(list(rows.values())).numpy())
    print("wrote " + " and ".join(filter(None, (args.out, args.npy))))


if __name__ == "__main__":
    with one_line_errors():
        main()
