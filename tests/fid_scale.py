"""What values of the fashion FID mean: real and spoilt images against the training set; makes the README's table.

    python tests/fid_scale.py            # two minutes on one core
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
import data
import fid


def main():
    data.Parser(description=__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    images, labels = data.load("train", HOME / "data", labels=True)
    n, x = 10000, data.normalize(images[:10000])
    cases = {
        "the test set": data.load("test", HOME / "data"),
        **{f"noise of standard deviation {s}": data.to_uint8(x + s * torch.randn_like(x)) for s in (0.05, 0.1, 0.2)},
        "2 x 2 pixels averaged": data.to_uint8(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)),
        "five classes only": images[labels < 5][:n],
        "uniform noise": torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8),
    }
    features = fid.load_features("fashion")
    mu, sigma, _ = fid.reference_statistics(features, images, "train", HOME / "data" / "fid")
    for name, case in cases.items():
        distance = fid.frechet_distance(mu, sigma, *fid.moments(fid.extract(features, case)))
        print(f"{name:32s} {distance:8.3f}   ({len(case)} images, fashion features, against train, seed 0)")


if __name__ == "__main__":
    with data.one_line_errors():
        main()
