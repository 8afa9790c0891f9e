"""How many of 1,000 modes a model covers: the StackedMNIST experiment of Xiao et al. 2022 with garments.

    python train_ddgan.py --data stacked --out runs/stacked && python experiments/modes.py runs/stacked/model.pt

The classifier of `fid.py --features fashion` names the garment in each of the three channels. Prints how many of the
1,000 triples occur, and the KL divergence of their shares from uniform, beside the same for real stacks: what is left
of it there is chance, 999 / (2 n) nats for n images, and the classifier's preferences.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch

from data import load as load_images
from data import random_batch
from features import kinds
from model import add_sampler_flags, load, sampler_flags

MODES = 1000


def modes(images, device="cpu"):
    """The mode 0..999 of each image, uint8 (N, 3, H, W) -> int64 (N,): the kinds of its channels as three digits."""
    digits = kinds(images.flatten(0, 1)[:, None], device).view(-1, 3)  # (N, 3, H, W) -> (3N, 1, H, W) -> (N, 3)
    return digits @ torch.tensor([100, 10, 1])


def coverage(found):
    """Of modes (N,): how many of the 1,000 there are, and KL(their shares || uniform) in nats."""
    shares = found.bincount(minlength=MODES).double() / len(found)
    return int((shares > 0).sum()), torch.special.xlogy(shares, shares * MODES).sum().item()


def main(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("models", nargs="+", type=cli.path, metavar="MODEL",
                        help="model.pt of a model trained on --data stacked")
    parser.add_argument("--samples", type=cli.number(int, 1), default=25_600, help="images of each")
    parser.add_argument("--root", type=cli.path, default="data", help="folder for Fashion-MNIST")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    models = [load(path, args.device) for path in args.models]
    for path, model in zip(args.models, models):
        if model.shape != (3, 28, 28):
            raise cli.BadInput(f"{path} draws images of shape {model.shape}: train one with --data stacked")
    flags = sampler_flags(args, models)

    def report(name, images):
        seen, kl = coverage(modes(images, args.device))
        print(f"{name:50} {seen:5} {kl:17.4f}", flush=True)

    print(f"{f'of {args.samples} images':50} modes   KL from uniform")
    torch.manual_seed(args.seed)
    real = load_images("stacked", "test", args.root)
    report("real stacks, of the test set", random_batch(real, args.samples, mixed=True))
    for path, model, arguments in zip(args.models, models, flags):
        report(path, model.generate(args.samples, args.seed, args.batch, args.amp, progress=True, **arguments))


if __name__ == "__main__":
    cli.script(main)
