"""The eye beside the FID: which images does a reader call broken who does not know where they come from?

    python experiments/blind.py weights/ddpm.pt weights/ddgan.pt weights/siddm.pt --steps 50 --out sheets
    python experiments/blind.py weights/ddpm.pt weights/ddgan.pt weights/siddm.pt --marks figures/blind-shipped.csv

The first line draws as many images of each model as of the test set, and shuffles them onto sheets of 8 x 8 tiles. A
rater notes the broken tiles of each sheet: a CSV with the columns rater, sheet, broken, such as `ann,1,A3 H8`, with a
row for every sheet. The second line, with the same models, --each and --seed, counts whose they are.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import torch

from data import image_grid, load, save_figure, subplots
from fid import read_csv
from model import add_sampler_flags, sampler_flags
from model import load as load_model

ROWS, COLUMNS = "ABCDEFGH", "12345678"  # the names of a sheet's tiles
TILES = [row + column for row in ROWS for column in COLUMNS]


def shuffle(n, seed):
    """A permutation of n images, int64 (n,): the same for the sheets and for the count."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def draw_sheet(images, path):
    """Write at most 64 images, uint8 (N, C, H, W), as one sheet with the names of its rows and columns."""
    blank = images.new_full((len(TILES) - len(images), *images.shape[1:]), 255)
    figure, axis = subplots(figsize=(9.6, 9.6), layout="constrained")
    axis.imshow(image_grid(torch.cat([images, blank]), columns=len(COLUMNS)), interpolation="nearest")
    height, width = (size + 1 for size in images.shape[2:])  # with the line between tiles
    axis.set_xticks([width * (i + 0.5) for i in range(len(COLUMNS))], COLUMNS)
    axis.set_yticks([height * (i + 0.5) for i in range(len(ROWS))], ROWS)
    save_figure(figure, path, dpi=100)


def read_marks(path, n):
    """What each rater marked of n images: {rater: the places of the broken ones, a list}, or BadInput."""
    def check(row):
        for tile in row["broken"].split():
            if tile not in TILES or place(row, tile) >= n or int(row["sheet"]) < 1:
                raise ValueError(f"sheet {row['sheet']} has no tile {tile}")

    def place(row, tile):
        return (int(row["sheet"]) - 1) * len(TILES) + TILES.index(tile)

    marks, sheets = {}, {}
    for row in read_csv(path, ["rater", "sheet", "broken"], check):
        marks.setdefault(row["rater"], []).extend(place(row, tile) for tile in row["broken"].split())
        sheets.setdefault(row["rater"], []).append(int(row["sheet"]))
    wanted = list(range(1, -(-n // len(TILES)) + 1))
    for rater, found in sheets.items():
        if sorted(found) != wanted:
            raise cli.BadInput(f"{path}: rater {rater} has rows for the sheets {sorted(found)}, there are {wanted}: "
                               "give a row for each, with no tile where none is broken")
    if not marks:
        raise cli.BadInput(f"no marks in {path}: give the CSV that raters have filled in")
    return marks


def main(argv=None):
    parser = cli.Parser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("models", nargs="+", type=cli.path, metavar="MODEL", help="model.pt of models of the same data")
    flag("--each", type=cli.number(int, 1), default=128, help="images of each model, and of the test set")
    flag("--marks", type=cli.path, metavar="FILE", help="count the marks of this CSV, and draw nothing")
    flag("--out", type=cli.path, default="sheets", help="folder for the sheets, 1.png and so on")
    flag("--root", default="data", help="folder for the data sets that have a name")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    names = ["the test set", *args.models]
    order = shuffle(args.each * len(names), args.seed)
    if args.marks:
        marks = read_marks(args.marks, len(order))
        print(f"of {args.each} images, broken by the eye of{'':6}" + "".join(f"{rater:>10}" for rater in marks))
        counts = [(order[places] // args.each).bincount(minlength=len(names)) for places in marks.values()]
        for name, row in zip(names, torch.stack(counts).T.tolist()):
            print(f"{cli.printable(name):40}" + "".join(f"{count:10}" for count in row))
        return
    sheets = [Path(args.out, f"{i + 1}.png") for i in range(-(-len(order) // len(TILES)))]
    cli.check_outputs(*sheets, inputs=args.models)
    models = [load_model(path, args.device) for path in args.models]
    test = load(models[0].args["data"], "test", args.root)
    images = [test[shuffle(len(test), args.seed)[:args.each]]]
    for path, model, flags in zip(args.models, models, sampler_flags(args, models)):
        if model.shape != tuple(test.shape[1:]):
            raise cli.BadInput(f"{path} draws images of {model.shape}, and the first model was trained on images of "
                               f"{tuple(test.shape[1:])}: give models of the same data")
        images.append(model.generate(args.each, args.seed, args.batch, args.amp, progress=True, **flags))
    for path, part in zip(sheets, torch.cat(images)[order].split(len(TILES))):
        draw_sheet(part, path)
    print(f"wrote {', '.join(map(str, sheets))}")


if __name__ == "__main__":
    cli.script(main)
