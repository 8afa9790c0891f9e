"""Garments from sketches: stroke-based editing as in SDEdit and Xiao et al. 2022, for each t a chain can begin at.

    python experiments/editing.py weights/ddgan.pt weights/ddpm.pt --sampler ddim --steps 50 --out figures/editing.png

A sketch is noised to t by eq. (2) and denoised from there by the model's own sampler: near t = 1 it stays what it is,
near T it is forgotten. The figure has three drawn sketches and three test images reduced to 7 x 7 blocks of four grey
levels, eight garments each, at t = T/4, T/2, 3T/4. Printed for each of these t, over --samples reduced test images: the
root mean square distance of the blocks of what comes out to those of the sketch (grey levels out of 255), the fashion
FID, and the seconds for an image.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import numpy as np
import torch
import torch.nn.functional as F

from data import image_grid, label, save_figure, subplots
from data import load as load_images
from features import load_features, reference_statistics, statistics_of
from fid import frechet_distance
from model import add_sampler_flags, load, sampler_flags

SHAPES = [  # grey level and corners (x, y) of the flat shapes that make a sketch of 28 x 28, drawn one over the other
    [(150, [(8, 3), (19, 3), (20, 26), (15, 26), (14, 10), (13, 10), (12, 26), (7, 26)])],  # trousers
    [(90, [(9, 2), (18, 2), (27, 10), (23, 14), (20, 11), (20, 25), (7, 25), (7, 11), (4, 14), (0, 10)]),
     (200, [(11, 2), (16, 2), (13, 6)])],  # a shirt and its collar
    [(180, [(2, 22), (2, 18), (12, 14), (14, 5), (24, 5), (24, 22)]),
     (60, [(2, 24), (2, 22), (24, 22), (24, 24)])],  # a boot and its sole
]


def drawn():
    """The sketches of SHAPES, uint8 (3, 1, 28, 28)."""
    from PIL import Image, ImageDraw

    sketches = []
    for shapes in SHAPES:
        image = Image.new("L", (28, 28))
        for grey, corners in shapes:
            ImageDraw.Draw(image).polygon(corners, fill=grey)
        sketches.append(np.array(image))
    return torch.from_numpy(np.stack(sketches))[:, None]


def blocks(images):
    """The means of blocks of 4 x 4 pixels: uint8 (N, 1, 28, 28) -> float32 (N, 1, 7, 7)."""
    return F.avg_pool2d(images.float(), 4)


def reduced(images):
    """Images in 7 x 7 blocks of four grey levels, uint8 (N, 1, 28, 28) of 0, 85, 170, 255."""
    levels = (blocks(images) / 85).round() * 85
    return levels.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).to(torch.uint8)


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("models", nargs="+", type=cli.path, metavar="MODEL", help="model.pt of models of Fashion-MNIST")
    flag("--samples", type=cli.number(int, 4), default=2000, help="test images that are reduced, edited and scored")
    flag("--out", type=cli.path, default="editing.png", help="the figure")
    flag("--root", type=cli.path, default="data", help="folder for Fashion-MNIST")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    cli.check_outputs(args.out, inputs=args.models)
    models = [load(path, args.device) for path in args.models]
    for path, model in zip(args.models, models):
        if model.shape != (1, 28, 28) or model.T < 4:
            raise cli.BadInput(f"{path}: images of {model.shape}, T = {model.T}: give models of 28 x 28 garments with "
                               "T = 4 or more")
    flags_of = sampler_flags(args, models)
    test = load_images("fashion-mnist", "test", args.root)
    edits, sketches = reduced(test[:args.samples]), torch.cat([drawn(), reduced(test[[0, 11, 18]])])
    features = load_features("fashion", device=args.device)
    mu, sigma, _ = reference_statistics(
        features, load_images("fashion-mnist", "train", args.root), Path(args.root, "fid"))
    figure, axes = subplots(len(models), 3, figsize=(13, 3.4 * len(models)), squeeze=False, layout="constrained")
    print(f"{len(edits)} test images in 7 x 7 blocks of four grey levels, seed {args.seed}")
    print(f"{'':30}     t   NFE  distance     FID  s/image")
    for row, path, model, flags in zip(axes, args.models, models, flags_of):
        for axis, quarter in zip(row, (1, 2, 3)):
            start = quarter * model.T // 4
            sampler = {**flags, "start": start}
            if "steps" in flags:
                sampler["steps"] = max(1, flags["steps"] * quarter // 4)
            if start == 1:
                sampler.pop("temperature", None)  # no step from t = 1 adds noise
            how = {**sampler, "seed": args.seed, "batch": args.batch, "amp": args.amp}
            edited = model.generate(48, edit=sketches.repeat_interleave(8, dim=0), **how).unflatten(0, (6, 8))
            shown = torch.cat([sketches[:, None], edited], dim=1)
            axis.imshow(image_grid(shown.flatten(0, 1), columns=9), interpolation="nearest")
            generated, seconds = model.generate_timed(len(edits), edit=edits, **how)
            distance = (blocks(generated) - blocks(edits)).square().mean().sqrt().item()
            fid = frechet_distance(mu, sigma, *statistics_of(features, generated))
            nfe = model.sampler(**sampler)[1]
            axis.set_title(label(f"{model.label}, t = {start} of {model.T}, {nfe} evaluations"), fontsize=10)
            axis.axis("off")
            print(f"{path:30} {start:5} {nfe:5} {distance:9.1f} {fid:7.2f} {seconds / len(edits):8.4f}", flush=True)
    save_figure(figure, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.script(main)
