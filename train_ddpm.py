"""Train the DDPM of section 3.1: Algorithm 1 (paper 003) on the U-Net of unet.py.

    python train_ddpm.py                              # sized for a GPU
    python train_ddpm.py --preset cpu                 # an hour on one CPU core
    python train_ddpm.py --evaluate weights/ddpm.pt   # the bound (5) term by term, in bits per dimension

Writes into runs/ddpm: model.pt (for sample.py and fid.py), checkpoint.pt (for --resume), log.csv, grids of samples.
The algorithm is `train_step`; `Run` and what stands around it serve the other trainers as well.
"""

import argparse
import contextlib
import copy
import csv
import math
import os
import signal
import sys
import time
from itertools import pairwise

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from data import BadInput, Parser, check_writable, load, normalize, number, one_line, one_line_errors, write_atomically
from diffusion import PREDICTIONS
from losses import decoder_nll, prior_kl, simple_loss, weighted_loss
from sample import DEVICES, Model, device, generate, load_model, read_checkpoint, save_grid
from unet import PRESETS, bf16_autocast, preset


def main():
    parser = training_parser(__doc__, T=1000, out="runs/ddpm")
    parser.add_argument("--lr", type=number(float, above=0), default=1e-3,
                        help="Adam's learning rate, falling to 0 as a cosine")
    parser.add_argument("--predict", choices=PREDICTIONS, default="eps",
                        help="what the network says of x_t: its noise, the clean image, or the posterior's mean "
                        "(which bfloat16 has too few digits for: no autocast if not said)")
    parser.add_argument("--loss", choices=["simple", "weighted"], default="simple",
                        help="the mean square error of that, or (6), which weights it as the bound does")
    parser.add_argument("--evaluate", metavar="MODEL", help="no training: bits per dimension of this model on --batch test images")
    known = parser.parse_args()
    if known.evaluate:
        return evaluate(known)
    if known.predict == "mean":
        parser.set_defaults(amp=False)
    run = Run("DDPM", parser, cpu={"steps": 7000, "batch": 64})
    args, network, diffusion = run.args, run.model.network, run.model.diffusion
    if args.loss == "weighted" and args.T < 2:
        raise BadInput("--loss weighted: (6) begins at t = 2, so give --T 2 or more, or --loss simple")

    images = load("train", args.data).to(args.device)  # uint8 (N, 1, 28, 28)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)
    scheduler = CosineAnnealingLR(optimizer, args.steps)  # v2, sec. 3.1

    for _ in run.steps(network=network, optimizer=optimizer, scheduler=scheduler):
        x_0 = normalize(images[torch.randint(len(images), (args.batch,), device=args.device)])
        run.log(**train_step(network, optimizer, x_0, diffusion, args))
        scheduler.step()
        run.ema.update_parameters(network)


def train_step(network, optimizer, x_0, diffusion, args):
    """One pass through Algorithm 1 (paper 003) on clean data x_0 (B, ...); returns what Run.log takes.

    args holds the flags predict, loss and amp; Algorithm 1 is predict = "eps", loss = "simple".
    """
    t = torch.randint(1, diffusion.T + 1, (len(x_0),), device=x_0.device)
    eps = torch.randn_like(x_0)
    x_t = diffusion.q_sample(x_0, t, eps)
    with bf16_autocast(x_0.device, args.amp):
        output = network(x_t, t).float()
    target = {"eps": eps, "x_0": x_0, "mean": diffusion.posterior(x_0, x_t, t)[0]}[args.predict]
    loss = simple_loss(target, output)
    if args.loss == "weighted":  # (6) is infinite at t = 1; ours: the weight of t = 2 there, where the bound has decoder_nll
        nats = weighted_loss(eps, diffusion.eps_from(args.predict, output, x_t, t), t.clamp(min=2), diffusion)  # (B,)
        loss = nats.mean() / x_0[0].numel()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss}


@torch.no_grad()
def evaluate(args):
    """Print the bound on -log p(x_0), (5) with the two terms that its print leaves out, by one x_t for each image and t."""
    model = load_model(args.evaluate, args.device)
    if model.method != "DDPM":
        raise BadInput(f"--evaluate {args.evaluate}: a {model.method} has no likelihood; give a DDPM")
    T, diffusion, variances = model.T, model.diffusion, ("beta_tilde", "beta")
    x_0 = normalize(load("test", args.data)[:args.batch].to(args.device))
    torch.manual_seed(args.seed)
    terms = []  # L_0, L_1, .., L_T, each (2, B): for both variances
    for step in tqdm(range(1, T + 1), desc="t", leave=False, disable=None):
        t, eps = torch.full((len(x_0),), step, device=args.device), torch.randn_like(x_0)
        x_t = diffusion.q_sample(x_0, t, eps)
        with model.autocast(args.amp):
            prediction = model.eps_theta(x_t, t)
        if step == 1:  # beta_tilde_1 is 0; what Ho et al. 2020, sec. 3.3, integrate needs a variance
            L = [decoder_nll(x_0, diffusion.x_0_from_eps(x_t, prediction, t), diffusion.beta[1])] * 2
        else:
            L = [weighted_loss(eps, prediction, t, diffusion, variance) for variance in variances]
        terms.append(torch.stack(L).double())
    terms.append(prior_kl(x_0, diffusion).double().expand(2, -1))
    bits = torch.stack(terms) / (math.log(2) * x_0[0].numel())  # (T+1, 2, B), a dimension
    print(f"{args.evaluate}: bits per dimension, {len(x_0)} test images, seed {args.seed}")
    print(f"{'sigma_t^2 =':20}" + "".join(f"{variance:>12}" for variance in variances))
    ends = sorted({1, *(end for end in (10, 100) if end < T), T})
    for name, low, high in [("L_0", 0, 1), *((f"L_{i}..L_{j - 1}", i, j) for i, j in pairwise(ends)), ("L_T", T, T + 1)]:
        print(f"{name:20}" + "".join(f"{value:12.4f}" for value in bits[low:high].sum(0).mean(1)))
    whole = bits.sum(0)  # (2, B)
    print(f"{'bound':20}" + "".join(f"{value:12.4f}" for value in whole.mean(1)))
    print(f"{'its standard error':20}" + "".join(f"{value:12.4f}" for value in whole.std(1) / len(x_0) ** 0.5))


# -- what a training run needs besides its algorithm ----------------------------------------------------------


def training_parser(doc, T, out):
    """The flags that all trainers share."""
    parser = Parser(description=doc.splitlines()[0])
    flag = parser.add_argument
    flag("--T", type=number(int, 1), default=T, help="denoising steps T")
    flag("--steps", type=number(int, 1), default=60000, help="optimiser steps")
    flag("--batch", type=number(int, 1), default=128, help="images in a step")
    flag("--preset", choices=list(PRESETS), default="gpu",
         help="sizes of the networks (unet.py); cpu also has the defaults of a run of an hour on one core")
    flag("--width", type=number(int, 8), help="channels at the highest resolution, if not the preset's; a multiple of 8")
    flag("--ema", type=number(float, 0, below=1), default=0.999, help="decay of the weights' average that is sampled from")
    flag("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of the initial weights, the batches and the noise")
    flag("--device", type=device, default=DEVICES[0], help="where to train")
    flag("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast; where the hardware has it if not said")
    flag("--every", type=number(int, 1), default=1000, help="steps between checkpoints, log lines and grids of samples")
    flag("--out", default=out, help="folder of the run")
    flag("--data", default="data", help="where Fashion-MNIST is, or will be fetched to")
    flag("--resume", action="store_true", help="continue the run in --out where its last checkpoint ends")
    return parser


UNSAVED = {"device", "out", "data", "resume", "evaluate"}  # flags that are no part of a run
FREE = {"every", "amp"}  # flags that may be given anew when it is resumed


class Run:
    """A training run in its folder: the arguments, the model and its EMA, progress, log, checkpoints, and how to stop.

    `steps` yields until --steps are done. At every --every steps, at the end, and on Ctrl-C or SIGTERM it writes
    checkpoint.pt (everything), model.pt (EMA weights in float16), log.csv and a grid of EMA samples. A loss that is
    not finite ends the run and leaves those files as they were.
    """

    def __init__(self, method, parser, cpu):
        """cpu: the defaults of flags that go with --preset cpu."""
        if parser.parse_args().preset == "cpu":
            parser.set_defaults(**cpu)
        self.args = args = parser.parse_args()
        self.path = os.path.join(args.out, "checkpoint.pt")
        check_writable(self.path)
        if not args.resume and os.path.exists(self.path):
            raise BadInput(f"{self.path} exists: add --resume to continue that run, or choose another --out")
        self.saved = self._read(method, parser) if args.resume else None
        if args.width and args.width % 8:
            raise BadInput(f"--width {args.width} is not a multiple of 8, the groups of the normalisation")
        latent = {"z_dim": args.z_dim} if "z_dim" in args else {}
        network = self.saved["args"]["network"] if self.saved else {**preset(args.preset, args.width), **latent}
        flags = {name: value for name, value in vars(args).items() if name not in UNSAVED}
        torch.manual_seed(args.seed)
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
        self.model = Model({"method": method, "schedule": "vp", **flags, "network": network}, args.device)
        self.sizes = {name: value for name, value in network.items() if name != "z_dim"}  # D's are the same
        self.ema = exponential_moving_average(self.model.network, args.ema)
        self.step, self.seconds, self.rows, self.sums = 0, 0.0, [], {}

    def _read(self, method, parser):
        """Read the checkpoint to resume and take its arguments; a typed flag that contradicts them is an error."""
        saved = read_checkpoint(self.path)
        if saved["args"]["method"] != method or "training" not in saved:
            raise BadInput(f"{self.path} is not a {method}'s training checkpoint: choose another --out")
        untyped = object()  # argparse leaves alone what the namespace already has, unless it is typed
        typed = parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(vars(self.args), untyped)))
        for name in vars(self.args).keys() & saved["args"].keys():
            value, given = saved["args"][name], getattr(typed, name)
            if given is untyped:
                setattr(self.args, name, value)
            elif given != value and name not in FREE:
                flag = f"--{name.replace('_', '-')} {given}"
                raise BadInput(f"{flag} is not what {self.path} was begun with ({value}): "
                               "leave it out, or choose another --out")
        return saved

    def steps(self, check=lambda row: None, **parts):
        """Yield once a step. parts: all that has a state_dict and must be saved; check: is shown each line of the log."""
        self.parts, self.check = {"ema": self.ema, **parts}, check
        if self.saved:
            self._restore(self.saved.pop("training"))
        batch, count = self.args.batch, sum(p.numel() for p in self.model.network.parameters())
        print(f"{self.model.method}: {count / 1e6:.2f} M parameters, on {self.args.device}", file=sys.stderr)
        shown_every = 0.5 if sys.stderr.isatty() else 60  # seconds
        bar = tqdm(total=self.args.steps * batch, initial=self.step * batch, unit="img", mininterval=shown_every)
        with bar, signals_noted() as received:
            start = time.perf_counter() - self.seconds
            while self.step < self.args.steps:
                yield
                self.step += 1
                bar.update(batch)
                self.seconds = time.perf_counter() - start
                if self.step % 50 == 0:  # reading a loss makes CUDA wait: not at every step
                    bar.set_postfix({name: f"{value:.3f}" for name, value in self._means().items()
                                     if name.endswith("_1") or not name[-1].isdigit()}, refresh=False)
                due = self.step % self.args.every == 0 or self.step == self.args.steps
                if due:
                    self._note_row()
                if due or received:
                    self._save()
                if received:
                    bar.close()
                    print(f"stopped at step {self.step}; continue with --resume --out {self.args.out}", file=sys.stderr)
                    sys.exit(128 + received[0])  # as a shell reports the signal

        print(f"{self.args.out}/model.pt: {self.step} steps; draw by sample.py, score by fid.py", file=sys.stderr)

    def log(self, **values):
        """Add this step's values to the means that the next line of log.csv will hold.

        A value is a scalar tensor, or a pair (sum, count) of tensors of shape (T+1,): one mean for each t = 1..T.
        """
        for name, value in values.items():
            total, count = value if isinstance(value, tuple) else (value, torch.ones(()))
            old_total, old_count = self.sums.get(name, (0, 0))
            self.sums[name] = (old_total + total.detach(), old_count + count)

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
        kept = f"{self.path} holds the last good step" if os.path.exists(self.path) else "nothing was saved yet"
        raise SystemExit(f"step {self.step}: {what}; {kept}. Begin again with a lower learning rate, or with --no-amp")

    def _note_row(self):
        row = {"step": self.step, "seconds": round(self.seconds, 1), **self._means()}
        self.check(row)
        self.rows.append(row)
        self.sums = {}

    def _save(self):
        self._means()  # ends the run if a loss is not finite
        out, weights, cuda = self.args.out, self.ema.module.state_dict(), self.args.device.type == "cuda"
        averaged = copy.copy(self.model)
        averaged.network = self.ema.module
        try:
            grid = generate(averaged, 64, amp=self.args.amp, **averaged.quick)
        except ValueError as error:  # to_uint8 takes no NaN
            self._diverged(str(error))
        with write_atomically(os.path.join(out, "model.pt")) as temporary:
            half = {name: value.half() for name, value in weights.items()}
            torch.save({"args": self.model.args | {"step": self.step}, "weights": half}, temporary)
        save_grid(grid, os.path.join(out, f"samples-{self.step:06d}.png"))
        if self.rows:
            with write_atomically(os.path.join(out, "log.csv")) as temporary, open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        training = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "step": self.step, "seconds": self.seconds, "rows": self.rows, "sums": self.sums,
            "random": torch.get_rng_state(), "random_cuda": torch.cuda.get_rng_state(self.args.device) if cuda else None,
        }
        with write_atomically(self.path) as temporary:  # last, so that a run cut short before it does all this again
            torch.save({"args": self.model.args, "weights": weights, "training": training}, temporary)

    def _restore(self, training):
        try:
            for name, part in self.parts.items():
                part.load_state_dict(training["parts"][name])
            self.step, self.seconds, self.rows = training["step"], training["seconds"], training["rows"]
            to = self.args.device
            self.sums = {name: (total.to(to), count.to(to)) for name, (total, count) in training["sums"].items()}
            torch.set_rng_state(training["random"])
            if training["random_cuda"] is not None and to.type == "cuda":
                torch.cuda.set_rng_state(training["random_cuda"], to)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = one_line(error)[:99]  # load_state_dict names every weight
            raise BadInput(f"{self.path} does not fit this version of the trainer ({reason}): begin a new run") from error


def exponential_moving_average(network, decay):
    """theta' <- d theta' + (1 - d) theta, with d rising to `decay` so that the first weights are soon forgotten."""

    def average(averages, weights, _):
        n = int(model.n_averaged)  # it stays on the CPU
        d = min(decay, (1 + n) / (10 + n))  # as TensorFlow's ExponentialMovingAverage(num_updates=n)
        get_ema_multi_avg_fn(d)(averages, weights, n)

    model = AveragedModel(network, multi_avg_fn=average)
    return model


@contextlib.contextmanager
def signals_noted():
    """Within the block Ctrl-C and SIGTERM only add their number to the list that it yields; a second one acts as ever."""
    received = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        received.append(number)
        signal.signal(number, handlers[number])

    try:
        for number in handlers:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    with one_line_errors():
        main()
