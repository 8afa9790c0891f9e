"""A training run: its flags, its data, its folder with EMA, log, checkpoints and grids, how it stops and is resumed."""

import argparse
import copy
import csv
import math
import os
import sys
import time
from pathlib import Path

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import cli
from cli import BadInput, number, one_line, write_atomically
from data import DATA_SETS, load, normalize, random_batch, save_grid
from model import Model, computes_in_bf16, read_checkpoint
from unet import PRESETS, preset

# -- the arguments --------------------------------------------------------------------------------------------

NOT_SAVED = {"device", "out", "resume", "help"}  # where and how it runs, not what is trained
NO_FLAGS = {"method", "schedule", "shape", "network", "step"}  # what a checkpoint says besides the trainer's flags
CHANGEABLE = {"every", "amp", "steps", "data", "root"}  # flags that --resume may change; steps may only grow


def training_parser(doc, T, out):
    """The flags that all trainers share."""
    parser = cli.Parser(doc, add_help=False)
    flag = parser.add_argument
    flag("-h", "--help", action="store_true", default=argparse.SUPPRESS, help="show this text and exit")
    flag("--T", type=number(int, 1, 10**6), default=T, help="denoising steps T")
    flag("--data", type=cli.path, default="fashion-mnist", help="images: fashion-mnist, mnist, kmnist, cifar10, "
         "stacked, an .npy file of uint8 (N, H, W) or (N, C, H, W), or a folder of images of one size")
    flag("--root", type=cli.path, default="data", help="folder for the data sets that have a name")
    flag("--preset", choices=list(PRESETS), help="sizes of the networks (unet.py) and length of the run")
    flag("--steps", type=number(int, 1), default=60000, help="optimiser steps")
    flag("--batch", type=number(int, 1), default=128, help="images in a step")
    flag("--width", type=number(int, 8, 8192), help="channels at the highest resolution, a multiple of 8")
    flag("--ema", type=number(float, 0, below=1), default=0.999, help="decay of the moving average of the weights")
    flag("--seed", type=cli.SEED, default=0, help="of the initial weights, the batches and the noise")
    flag("--device", type=cli.device, default=cli.default_device(), help="where to train")
    flag("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; default: where the hardware has it")
    flag("--every", type=number(int, 1), default=1000, help="steps between checkpoints, log lines and grids of samples")
    flag("--out", type=cli.path, default=out, help="folder of the run")
    flag("--resume", action="store_true", help="continue --out from its last checkpoint; more --steps lengthen it, "
         "and its cosine")
    return parser


def parse(parser, argv, cpu, depends=lambda args: {}):
    """The arguments of a trainer as a namespace: all flags of `training_parser`. --help prints them and exits.

    argv: a list of strings, or None for the command line. cpu: defaults that go with --preset cpu; depends(args):
    defaults that follow from other flags. With --resume the run's own arguments take the place of all defaults, and
    BadInput names a flag that contradicts them.
    """
    defaults = vars(parser.parse_args([]))
    untyped = object()  # argparse leaves alone what the namespace already has, unless it is typed
    typed = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, untyped))))
    typed = {name: value for name, value in typed.items() if value is not untyped}
    if typed.get("resume"):
        path = Path(typed.get("out", defaults["out"]), "checkpoint.pt")
        if not os.path.exists(path):
            raise BadInput(f"no run to resume: {path} is not there; give the run's folder as --out, or no --resume")
        saved = read_checkpoint(path)["args"]
        foreign = saved.keys() - defaults.keys() - NO_FLAGS
        if foreign:
            flag = min(foreign).replace("_", "-")
            raise BadInput(f"{path} has --{flag}, which this trainer lacks: resume it with the one that began it")
        for name in typed.keys() - NOT_SAVED:
            value, given = saved.get(name, defaults[name]), typed[name]  # a flag newer than the run: its default
            flag = f"--{name.replace('_', '-')} {given}"
            if name == "steps" and given < value:
                raise BadInput(f"{flag}: the run in {path} is for {value} already: leave it out, or give more")
            if given != value and name not in CHANGEABLE:
                raise BadInput(f"{flag} is not what {path} was begun with ({value}): leave it out, or choose "
                               "another --out")
        defaults |= {name: saved[name] for name in defaults.keys() & saved.keys()}
    else:
        defaults["preset"] = "gpu" if (defaults | typed)["device"].type == "cuda" else "cpu"
        if (defaults | typed)["preset"] == "cpu":
            defaults |= cpu
        defaults |= depends(argparse.Namespace(**defaults | typed))
    if "help" in typed:
        defaults["width"] = preset((defaults | typed)["preset"], defaults["width"])["width"]
        parser.set_defaults(**defaults)
        parser.print_help()
        sys.exit(0)
    args = argparse.Namespace(**defaults | typed)
    args.root = os.path.abspath(args.root)  # for a --resume from another folder
    args.data = args.data if args.data in DATA_SETS else os.path.abspath(args.data)
    return args


# -- the run --------------------------------------------------------------------------------------------------


class Run:
    """A training run in its folder: images, model and EMA, progress, log, checkpoints, and how to stop.

    `steps` yields until --steps are done. Every --every steps, at the end, and on Ctrl-C, SIGTERM or SIGHUP it writes
    checkpoint.pt (everything), model.pt (EMA weights in float16), log.csv and a grid of EMA samples. A loss that is
    not finite ends the run and leaves those files as they were. train_ddpm.py is the shortest example.
    """

    def __init__(self, method, args, **network):
        """args: what `parse` returned; network: more arguments of the network. Writes nothing; may raise BadInput."""
        self.args, self.path = args, Path(args.out, "checkpoint.pt")
        cli.check_writable(self.path)
        checkpoint = read_checkpoint(self.path) if args.resume else {}
        saved = checkpoint.get("args", {})
        if not saved:
            self._refuse_a_folder_in_use()
        elif saved["method"] != method or "training" not in checkpoint:
            raise BadInput(f"{self.path} is not a {method}'s training checkpoint: choose another --out")
        if args.width and args.width % 8:
            raise BadInput(f"--width {args.width} is not a multiple of 8, the groups of the normalisation")
        sizes = preset(args.preset, args.width)
        sizes |= {name: saved["network"][name] for name in sizes if saved}  # PRESETS may have been edited since
        self.images = load(args.data, "train", args.root)  # uint8 (N, C, H, W)
        C, H, W = self.images.shape[1:]
        before = tuple(saved.get("shape", (C, H, W)))
        if before != (C, H, W):
            raise BadInput(f"--data {args.data}: its images are {C} x {H} x {W} now, and those of {self.path} were "
                           f"{' x '.join(map(str, before))}: give the images that it was begun with")
        stride = sizes["fold"] * 2 ** (len(sizes["mult"]) - 1)
        if H % stride or W % stride:
            low, high = ([n // stride * stride or stride for n in (H + add, W + add)] for add in (0, stride - 1))
            raise BadInput(f"--data {args.data}: {H} x {W} images do not fit the networks, whose sides are multiples "
                           f"of {stride}: cut or enlarge them to {low[0]} x {low[1]} or {high[0]} x {high[1]}")
        self.images, self.sizes = self.images.to(args.device), {**sizes, "channels": C}  # sizes: of all networks
        flags = {name: value for name, value in vars(args).items() if name not in NOT_SAVED}
        self.amp = computes_in_bf16(args.device) if args.amp is None else args.amp
        torch.manual_seed(args.seed)
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
        self.model = Model({"method": method, "schedule": "vp", **flags, "shape": (C, H, W),
                            "network": {**self.sizes, **network}}, args.device)
        self.diffusion = self.model.diffusion
        self.ema = MovingAverage(self.model.network, args.ema)
        self.step, self.seconds, self.rows, self.sums = 0, 0.0, [], {}

    def batch(self):
        """A batch of training images at random, float32 (B, C, H, W) in [-1, 1]."""
        return normalize(random_batch(self.images, self.args.batch, mixed=self.args.data == "stacked"))

    def steps(self, **parts):
        """Yield once a step. parts: all that has a state_dict and must be saved."""
        self.parts, args = {"ema": self.ema, **parts}, self.args
        with cli.locked_folder(args.out, wait=0), cli.signals_noted() as received:
            if args.resume:
                self._restore(read_checkpoint(self.path)["training"])  # again: another run may have gone on meanwhile
            else:
                self._refuse_a_folder_in_use()
            count = sum(p.numel() for p in self.model.network.parameters())
            N, C, H, W = self.images.shape
            print(f"{self.model.label}, T = {args.T}, {count / 1e6:.2f} M parameters, on {args.data} ({N} images, "
                  f"{C} x {H} x {W}): {args.steps} steps of {args.batch}, preset {args.preset}, {args.device}, "
                  f"{'bfloat16' if self.amp else 'float32'}, into {args.out}", file=sys.stderr)
            with tqdm(total=args.steps * args.batch, initial=self.step * args.batch, unit="img",
                      mininterval=0.5 if sys.stderr.isatty() else 60) as bar:
                start = time.perf_counter() - self.seconds
                while self.step < args.steps:
                    yield
                    self.step += 1
                    bar.update(args.batch)
                    self.seconds = time.perf_counter() - start
                    if self.step % 50 == 0:  # reading a loss makes CUDA wait: not at every step
                        bar.set_postfix({name: f"{value:.3f}" for name, value in self._means().items()
                                         if name.endswith("_1") or not name[-1].isdigit()}, refresh=False)
                    due = self.step % args.every == 0 or self.step == args.steps
                    if due:
                        self._note_row()
                    if due or received:
                        self._save()
                    if received:
                        bar.close()
                        print(f"stopped at step {self.step}; continue with --resume --out {args.out}", file=sys.stderr)
                        sys.exit(128 + received[0])  # as a shell reports the signal
        print(f"{args.out}/model.pt: {self.step} steps; draw by sample.py, score by fid.py", file=sys.stderr)

    def log(self, **values):
        """Add to the next row's means: scalar tensors, or pairs (sum, count) of (T+1,): one mean for each t = 1..T."""
        for name, value in values.items():
            total, count = value if isinstance(value, tuple) else (value, torch.ones(()))
            old_total, old_count = self.sums.get(name, (0, 0))
            self.sums[name] = (old_total + total.detach(), old_count + count)

    # -- the folder ---------------------------------------------------------------------------------------

    def _refuse_a_folder_in_use(self):
        out = Path(self.args.out)
        found = [name for name in ("checkpoint.pt", "model.pt", "log.csv") if (out / name).exists()]
        found += sorted(path.name for path in out.glob("samples-*.png"))
        if found:
            advice = "add --resume to continue that run, or " if found[0] == "checkpoint.pt" else ""
            raise BadInput(f"{out / found[0]} exists, and a run is never overwritten: {advice}choose another --out")

    def _means(self):
        means = {}
        for name, (total, count) in self.sums.items():
            mean = total / count.to(total.device)
            if mean.dim():
                means |= {f"{name}_{t}": value for t, value in enumerate(mean.tolist()) if t > 0}
            elif mean.isfinite():
                means[name] = mean.item()
            else:
                self._diverged(f"{name} is {mean.item()}")
        return means

    def _diverged(self, what):
        kept = f"{self.path} holds the last good step" if self.path.exists() else "nothing was saved yet"
        raise SystemExit(f"step {self.step}: {what}; {kept}. Begin again with a lower learning rate, or with --no-amp")

    def _note_row(self):
        row = {"step": self.step, "seconds": round(self.seconds, 1), **self._means()}
        if abs(row.get("gap_1", 1)) < 0.1:  # with bad samples that is a failed run, no equilibrium
            tqdm.write(f"step {self.step}: V(real) - V(fake) is {row['gap_1']:.3f} at t = 1, so D is at chance. If the "
                       "samples are bad: lower --lr-g or raise --lr-d", file=sys.stderr)
        self.rows.append(row)
        self.sums = {}

    def _save(self):
        self._means()  # ends the run if a loss is not finite
        out, weights, cuda = Path(self.args.out), self.ema.module.state_dict(), self.args.device.type == "cuda"
        averaged = copy.copy(self.model)
        averaged.network = self.ema.module
        try:
            grid = averaged.generate(64, batch=64, amp=self.amp, **averaged.fast_sampler())
        except BadInput as error:  # they are not finite
            self._diverged(str(error))
        with write_atomically(out / "model.pt") as temporary:
            half = {name: value.half() for name, value in weights.items()}
            told = {name: value for name, value in self.model.args.items() if name != "root"}  # a file to hand on
            torch.save({"args": told | {"step": self.step}, "weights": half}, temporary)
        save_grid(grid, out / f"samples-{self.step:06d}.png")
        if self.rows:
            with write_atomically(out / "log.csv") as new, new.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        training = {"parts": {name: part.state_dict() for name, part in self.parts.items()},
                    "step": self.step, "seconds": self.seconds, "rows": self.rows, "sums": self.sums,
                    "random": torch.get_rng_state(),
                    "random_cuda": torch.cuda.get_rng_state(self.args.device) if cuda else None}
        with write_atomically(self.path) as temporary:  # last: if the run dies before, --resume writes the rest anew
            torch.save({"args": self.model.args, "weights": weights, "training": training}, temporary)

    def _restore(self, training):
        to = self.args.device
        try:
            for name, part in self.parts.items():
                part.load_state_dict(training["parts"][name])
                if isinstance(part, CosineAnnealingLR) and part.T_max != self.args.steps:  # the run was lengthened
                    part.T_max = self.args.steps
                    for group, lr in zip(part.optimizer.param_groups, part.base_lrs):
                        group["lr"] = lr * (1 + math.cos(math.pi * part.last_epoch / part.T_max)) / 2
            self.step, self.seconds, self.rows = training["step"], training["seconds"], training["rows"]
            self.sums = {name: (total.to(to), count.to(to)) for name, (total, count) in training["sums"].items()}
            torch.set_rng_state(training["random"])
            if training["random_cuda"] is not None and to.type == "cuda":
                torch.cuda.set_rng_state(training["random_cuda"], to)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = one_line(error)[:99]  # load_state_dict names every weight
            raise BadInput(f"{self.path} does not fit this trainer's version ({reason}): begin a new run") from error


class MovingAverage(AveragedModel):
    """theta' <- d theta' + (1 - d) theta, with d rising to `decay` so that the first weights are soon forgotten.

    torch's own update copies its counter to the GPU at every step, and waits for that.
    """

    def __init__(self, network, decay):
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, network):
        n = int(self.n_averaged)  # it stays on the CPU
        d = min(self.decay, (1 + n) / (10 + n)) if n else 0.0  # as TensorFlow's ExponentialMovingAverage(num_updates=n)
        get_ema_multi_avg_fn(d)(list(self.module.parameters()), list(network.parameters()), n)
        self.n_averaged += 1
