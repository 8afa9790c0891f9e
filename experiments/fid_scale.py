"""What values of the fashion FID mean: real and spoilt images against the training set; makes RESULTS.md's table.

    python experiments/fid_scale.py           # two minutes on one core
"""

import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch
import torch.nn.functional as F

from data import load, normalize, to_uint8
from features import load_features, reference_statistics, statistics_of
from fid import frechet_distance


def main(argv=None):
    cli.Parser(__doc__).parse_args(argv)
    torch.manual_seed(0)
    images, labels = load("fashion-mnist", "train", HOME / "data", labels=True)
    n, x = 10000, normalize(images[:10000])
    cases = {
        "the test set": load("fashion-mnist", "test", HOME / "data"),
        **{f"noise of standard deviation {s}": to_uint8(x + s * torch.randn_like(x)) for s in (0.05, 0.1, 0.2)},
        "2 x 2 pixels averaged": to_uint8(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)),
        "five classes only": images[labels < 5][:n],
        "uniform noise": torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8),
    }
    features = load_features("fashion")
    mu, sigma, _ = reference_statistics(features, images, HOME / "data" / "fid")
    for name, case in cases.items():
        distance = frechet_distance(mu, sigma, *statistics_of(features, case))
        print(f"{name:32s} {distance:8.3f}   ({len(case)} images, fashion features, against train, seed 0)")


if __name__ == "__main__":
    cli.script(main)
