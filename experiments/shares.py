"""The kinds of garments among samples, as the fashion classifier sees them: python experiments/shares.py MODEL ...

A line for the test set and for each model, in percent: the ten kinds, and "off", how many would have to be of another
kind for the shares to be the test set's, of 2,000 samples. A DDPM takes long by all its steps: give it `--sampler ddim
--steps 50`. The line of 2,000 training images shows how much of "off" is chance.
"""

import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
from data import load as load_images
from features import KINDS, check_shape, kinds
from model import add_sampler_flags, load, sampler_flags

SAMPLES = 2000


def shares(images):
    """The share of each kind among uint8 images (N, 1, 28, 28): (10,)."""
    return kinds(images).bincount(minlength=10) / len(images)


def main(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("models", nargs="+", type=cli.path, metavar="MODEL", help="model.pt of a trainer")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    models = [load(path, args.device) for path in args.models]
    flags = sampler_flags(args, models)
    for model in models:
        check_shape("fashion", model.shape)
    real = shares(load_images("fashion-mnist", "test", HOME / "data"))
    training = load_images("fashion-mnist", "train", HOME / "data")
    print("".join(f"{kind:>9}" for kind in [*KINDS, "off"]))
    print_line(real, real, "test set")
    print_line(shares(training[:SAMPLES]), real, f"{SAMPLES} training images")
    for path, model, arguments in zip(args.models, models, flags):
        print_line(shares(model.generate(SAMPLES, args.seed, args.batch, args.amp, **arguments)), real, path)


def print_line(generated, real, name):
    columns = [*generated, (generated - real).clamp(min=0).sum()]
    print("".join(f"{100 * share:9.1f}" for share in columns) + f"  {name}", flush=True)


if __name__ == "__main__":
    cli.script(main)
