"""The kinds of garments among a model's samples, as the fashion classifier sees them: python tests/shares.py MODEL ...

A line for each model and one for the test set, in percent: the ten kinds, and how many would have to be of another kind for
the shares to be the test set's. 2,000 samples, seed 0; of a DDPM, DDIM with 50 steps.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
import fid
import sample

KINDS = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]  # labels 0..9


@torch.inference_mode()
def shares(images):
    """The share of each kind among uint8 images (N, 1, 28, 28): (10,)."""
    network = fid.fashion_classifier().eval()
    network.load_state_dict(torch.load(fid.CLASSIFIER, weights_only=True))
    kinds = torch.cat([network(data.normalize(chunk)).argmax(1) for chunk in images.split(500)])
    return kinds.bincount(minlength=10) / len(images)


def main():
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model.pt of a trainer")
    models = {path: sample.load_model(path, sample.DEVICES[0]) for path in parser.parse_args().models}
    real = shares(data.load("test", Path(__file__).parent.parent / "data"))
    print("".join(f"{kind:>9}" for kind in [*KINDS, "off"]))
    print_line(real, real, "test set")
    for path, model in models.items():
        print_line(shares(sample.generate(model, 2000, **model.quick)), real, path)


def print_line(made, real, name):
    print("".join(f"{100 * share:9.1f}" for share in [*made, (made - real).clamp(min=0).sum()]) + f"  {name}", flush=True)


if __name__ == "__main__":
    with data.one_line_errors():
        main()
