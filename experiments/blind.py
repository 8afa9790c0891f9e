"""The eye beside the FID: which images does a rater call broken who does not know where they come from?

    python experiments/blind.py weights/ddpm.pt weights/ddgan.pt weights/siddm.pt --steps 50 --seed 1 --out sheets
    python experiments/blind.py --count figures/blind-shipped.csv

The first line draws as many images of each model as of the test set, and shuffles them onto sheets of 8 x 8 tiles. In
place of a model may stand samples, an .npy file or a folder of images; where no model tells their data, they are
garments. What tile is whose goes into sheets/blind.csv, which raters must not see. Add a row for each rater, with the
tiles that are broken: `rater,ann,1A3 2H8` for tile A3 of sheet 1 and H8 of sheet 2. The second line counts whose they
are, and tells how likely two counts differ so by chance.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import re
from itertools import combinations

import torch
from scipy.stats import fisher_exact

from data import DATA_SETS, image_grid, save_figure, subplots
from data import load as load_images
from fid import add_to_csv, load_source, read_csv
from model import Model, add_sampler_flags, sampler_flags

RULE = """for the raters: call a tile broken if its garment has holes where none has them, blots or stray fragments,
unnatural stripes, is two kinds in one, or no garment at all. Low resolution, dark pictures, prints, knitwear's stripes,
the openings of sandals and the handles of bags are not broken. Where you are in doubt, do not mark."""
COLUMNS = ["kind", "name", "tiles"]  # kind: source, with all its tiles, or rater, with the broken ones
SIDES = "ABCDEFGH", "12345678"  # the names of a sheet's rows and columns
TILES = [row + column for row in SIDES[0] for column in SIDES[1]]


def draw_sheet(images, path):
    """Write at most 64 images, uint8 (N, C, H, W), as one sheet with the names of its rows and columns."""
    blank = images.new_full((len(TILES) - len(images), *images.shape[1:]), 255)
    figure, axis = subplots(figsize=(9.6, 9.6), layout="constrained")
    axis.imshow(image_grid(torch.cat([images, blank]), columns=8), interpolation="nearest")
    height, width = (size + 1 for size in images.shape[2:])  # with the line between tiles
    axis.set_yticks([height * (i + 0.5) for i in range(8)], list(SIDES[0]))
    axis.set_xticks([width * (i + 0.5) for i in range(8)], list(SIDES[1]))
    save_figure(figure, path, dpi=100)


def check(row):
    """Raise ValueError if a row is malformed."""
    tiles = row["tiles"].split()
    for tile in tiles:
        if not re.fullmatch("[1-9][0-9]*[A-H][1-8]", tile) or tiles.count(tile) > 1:
            raise ValueError(f"{row['name']} has {tile}, which is not a tile such as 1A3, or is there twice")
    if row["kind"] not in ("source", "rater"):
        raise ValueError(f"{row['kind']} is neither source nor rater")


def read(path):
    """The tiles of each source and the broken ones of each rater: two dicts {name: set}. BadInput for other files."""
    rows = read_csv(path, COLUMNS, check)
    sources, raters = ({row["name"]: {*row["tiles"].split()} for row in rows if row["kind"] == kind}
                       for kind in ("source", "rater"))
    if not sources or not raters:
        raise cli.BadInput(f"{path} has {len(sources)} sources and {len(raters)} raters: give the blind.csv of some "
                           "sheets, with a row added for each rater")
    for name, marked in raters.items():
        unknown = marked.difference(*sources.values())
        if unknown:
            raise cli.BadInput(f"{path}: rater {name} marks {min(unknown)}, a tile of no sheet: repair that row")
    return sources, raters


def count(path):
    """Print how many of each source's images each rater calls broken, and how likely by chance two of them differ so.

    That is the p of Fisher's exact test, two-sided, for each pair of sources and each rater alone.
    """
    sources, raters = read(path)
    broken = {name: [len(tiles & marked) for marked in raters.values()] for name, tiles in sources.items()}
    lines = [["broken, by rater", "images", *raters]]
    lines += [[name, str(len(sources[name])), *map(str, counts)] for name, counts in broken.items()]
    lines += [["p of a difference, by rater"]]
    for a, b in combinations(sources, 2):
        tables = ([(x, len(sources[a]) - x), (y, len(sources[b]) - y)] for x, y in zip(broken[a], broken[b]))
        lines += [[f"{a}, {b}", "", *(f"{fisher_exact(table).pvalue:.3f}" for table in tables)]]
    lines = [[cli.printable(cell) for cell in line] for line in lines]
    first, width = max(len(line[0]) for line in lines), max(map(len, lines[0][1:]))
    for name, *cells in lines:
        print(f"{name:{first}}" + "".join(f"  {cell:>{width}}" for cell in cells))


def draw(args):
    """Write the sheets and blind.csv."""
    sources = {path: load_source(path, args.device)[1] for path in args.sources}
    models = [source for source in sources.values() if isinstance(source, Model)]
    data = models[0].args["data"] if models else "fashion-mnist"
    real = load_images(data, "test", args.root)
    for path, source in sources.items():
        shape = source.shape if isinstance(source, Model) else tuple(source.shape[1:])
        if shape != tuple(real.shape[1:]):
            raise cli.BadInput(f"{path} has images of shape {shape}, and {data} of {tuple(real.shape[1:])}: give "
                               "sources of the same data")
        if isinstance(source, Model) and source.args["data"] != data:
            raise cli.BadInput(f"{path} was trained on {source.args['data']}, and another model on {data}: give "
                               "sources of the same data")
        if isinstance(source, torch.Tensor) and len(source) < args.each:
            raise cli.BadInput(f"{path} holds {len(source)} images: give --each {len(source)}, or fewer")
    flags = dict(zip(models, sampler_flags(args, models)))
    if args.each > len(real):
        raise cli.BadInput(f"--each {args.each}: there are {len(real)} real images to compare with: give fewer")

    def shuffled(n):
        return torch.randperm(n, generator=torch.Generator().manual_seed(args.seed))

    images = [real[shuffled(len(real))[:args.each]]]
    for source in sources.values():
        images.append(source.generate(args.each, args.seed, args.batch, args.amp, progress=True, **flags[source])
                      if isinstance(source, Model) else source[shuffled(len(source))[:args.each].sort().values])
    order = shuffled(args.each * len(images))
    sheets = torch.cat(images)[order].split(len(TILES))
    for number, sheet in enumerate(sheets, start=1):
        draw_sheet(sheet, Path(args.out, f"{number}.png"))
    places = [f"{number}{tile}" for number, sheet in enumerate(sheets, start=1) for tile in TILES[:len(sheet)]]
    for i, name in enumerate(["the test set" if data in DATA_SETS else "the data", *sources]):
        tiles = [place for place, source in zip(places, (order // args.each).tolist()) if source == i]
        row = {"kind": "source", "name": name, "tiles": " ".join(tiles)}
        add_to_csv(Path(args.out, "blind.csv"), row, COLUMNS, check)
    print(f"wrote {len(sheets)} sheets and blind.csv into {args.out}\n{RULE}")


def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("sources", nargs="*", type=cli.path, metavar="SOURCE", help="model.pt of models of the same data, or samples: "
         "an .npy file or a folder of images")
    flag("--each", type=cli.number(int, 1), default=128, help="images of each source, and of the test set")
    flag("--out", type=cli.path, default="sheets", help="folder for the sheets, 1.png and so on, and blind.csv")
    flag("--count", type=cli.path, metavar="FILE", help="count the marks of such a blind.csv, and draw nothing")
    flag("--root", type=cli.path, default="data", help="folder for the data sets that have a name")
    add_sampler_flags(parser)
    args = parser.parse_args(argv)
    if bool(args.sources) == bool(args.count):
        raise cli.BadInput("give models or samples, or --count FILE: one of the two")
    if args.count:
        return count(args.count)
    table = Path(args.out, "blind.csv")
    if table.exists():
        raise cli.BadInput(f"{table} exists, and may have raters' marks: choose another --out")
    cli.check_outputs(table, inputs=args.sources)
    draw(args)


if __name__ == "__main__":
    cli.script(main)
