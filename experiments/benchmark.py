"""How fast the networks train and sample, against a plain matrix product and against the field's own libraries.

    python experiments/benchmark.py                    # all cores; --threads 1 for one
    pip install diffusers denoising-diffusion-pytorch pytorch-fid torch-fidelity    # for comparisons, all optional

Operations are counted by torch.utils.flop_counter: those of convolutions and matrix products, two a multiply-add.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import cli  # before torch, so that Ctrl-C is quiet from here on

# isort: split
import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_pil_image

import fid
import train_ddgan
import train_ddpm
from data import load, normalize, to_uint8
from diffusion import Diffusion
from features import extract, load_features, statistics_of
from model import computes_in_bf16
from unet import PRESETS, Discriminator, Generator, UNet, preset


def seconds(function, device, repeats):
    """Median wall time of function() after one call to warm up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def operations(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def product_rate(dtype, device, n):
    """FLOP/s of an n x n matrix product."""
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ b, device, 5)


def report(name, function, args, peak):
    """Time function, which handles args.batch images; print a line and return its images/s and operations per image."""
    count = operations(function) / args.batch
    rate = args.batch / seconds(function, args.device, args.repeats)
    print(f"{name:58s} {count / 1e9:7.3f} {rate:9.1f} {rate * count / 1e9:9.1f} {rate * count / peak:6.0%}")
    return rate, count


def ddpm_step(network, args, amp):
    """One training step of a denoiser as a function of nothing."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    diffusion, x_0 = Diffusion(1000, device=args.device), torch.randn(args.batch, 1, 28, 28, device=args.device)
    return lambda: train_ddpm.train_step(network, optimizer, x_0, diffusion, amp)


def ddgan_step(args, name):
    """One training step of train_ddgan.py without its penalty, T = 4."""
    sizes, diffusion = preset(name), Diffusion(4, device=args.device)
    G, D = Generator(diffusion.alpha_bar, **sizes).to(args.device), Discriminator(**sizes).to(args.device)
    optimizers = torch.optim.Adam(G.parameters(), fused=True), torch.optim.Adam(D.parameters(), fused=True)
    x_0, amp = torch.randn(args.batch, 1, 28, 28, device=args.device), computes_in_bf16(args.device)
    return lambda: train_ddgan.train_step(G, D, *optimizers, x_0, diffusion, G.z_dim, amp=amp)


def sampling(sample, network, args):
    def run():
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=computes_in_bf16(args.device)):
            sample(network.eval(), torch.randn(args.batch, 1, 28, 28, device=args.device))
    return run


def compare_with_diffusers(args, peak, ours):
    from diffusers import UNet2DModel

    levels = {"sample_size": 28, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    # as its users build it: three levels 28-14-7, attention in the middle; the width that comes nearest in operations
    def build(width):
        network = UNet2DModel(**levels, **blocks, block_out_channels=(width, 2 * width, 2 * width)).to(args.device)
        network.register_forward_hook(lambda network, inputs, output: output.sample)
        return network

    one = argparse.Namespace(**vars(args) | {"batch": 2})
    counts = {width: operations(ddpm_step(build(width), one, False)) / 2 for width in (8, 16, 24, 32, 40, 48)}
    width = min(counts, key=lambda width: abs(counts[width] - ours[1]))
    step = ddpm_step(build(width), args, False)
    rate, count = report(f"diffusers UNet2DModel, {width} channels, float32", step, args, peak)
    print(f"  ours against diffusers at equal operations: {ours[0] * ours[1] / (rate * count):.2f} times the images/s")


def compare_with_denoising_diffusion_pytorch(args, peak, ours):
    from denoising_diffusion_pytorch import Unet

    network = Unet(dim=32, channels=1, dim_mults=(1, 2, 2)).to(args.device)
    step = ddpm_step(network, args, False)
    rate, count = report("denoising-diffusion-pytorch Unet, dim 32, float32", step, args, peak)
    print(f"  ours against it at equal operations: {ours[0] * ours[1] / (rate * count):.2f} times the images/s")


# -- FID from images to the number, each package in a process of its own: features of two halves, distance ------


def random_inception(path):
    """Write weights of the published file's layout, random but such that images show through."""
    from torchvision.models import Inception3

    weights = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    for name, values in weights.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(values)
        if name.endswith(("bn.weight", "running_var")):
            values.uniform_(0.5, 2)
        if name.endswith(("bn.bias", "running_mean")):
            values.normal_(0, 0.1)
    torch.save(weights, path)


def fid_ours(folder, device):
    """The features (8, 2048) of the first images, and a function without arguments that gives the FID."""
    features = load_features("inception", folder / "weights.pth", device)
    halves = [torch.from_numpy(np.load(folder / f"{half}.npy")) for half in HALVES]
    moments = [part for half in halves for part in statistics_of(features, half)]
    return next(extract(features, halves[0][:8]))[0], lambda: fid.frechet_distance(*moments)


def fid_pytorch_fid(folder, device):
    from pytorch_fid import fid_score, inception

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(folder / "weights.pth")
    network = inception.InceptionV3().to(device)
    halves = [sorted((folder / half).iterdir()) for half in HALVES]
    moments = [part for half in halves
               for part in fid_score.calculate_activation_statistics(half, network, 100, device=device)]
    few = torch.from_numpy(fid_score.get_activations(halves[0][:8], network, 8, device=device))
    return few, lambda: fid_score.calculate_frechet_distance(*moments)


def fid_torch_fidelity(folder, device):
    from torch_fidelity import feature_extractor_inceptionv3, metric_fid, utils

    extractor = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    network = extractor("ours", ["2048"], folder / "weights.pth").to(device)
    common = {"batch_size": 100, "cuda": device.type == "cuda", "verbose": False, "samples_find_deep": False}
    moments, first = [], None
    for half in HALVES:
        found = utils.extract_featuresdict_from_input_id(1, network, input1=str(folder / half), **common)
        first = found["2048"][:8] if first is None else first
        moments.append(metric_fid.fid_features_to_statistics(found["2048"]))
    value = lambda: metric_fid.fid_statistics_to_metric(*moments, verbose=False)[metric_fid.KEY_METRIC_FID]
    return first, value


HALVES = "one", "other"
FID_PACKAGES = {"ours": fid_ours, "pytorch_fid": fid_pytorch_fid, "torch_fidelity": fid_torch_fidelity}


def measure_fid(name, folder, device, threads):
    """In a process of its own: (first features, FID, seconds of the moments, of the distance, peak in GiB)."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    first, distance = FID_PACKAGES[name](folder, device)
    middle = time.perf_counter()
    try:
        value = distance()
    except ValueError:  # pytorch-fid's "imaginary component"
        value = math.nan
    status = Path("/proc/self/status")  # not ru_maxrss, where a spawned process begins with its parent's peak
    peak = math.nan
    if status.exists():  # on Linux
        peak = int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20  # KiB -> GiB
    return first.double().cpu(), value, middle - start, time.perf_counter() - middle, peak


def compare_fid(args, images):
    """FID between half of the images and the other half made coarser, with the same random weights for all."""
    images[::2] = to_uint8(F.avg_pool2d(normalize(images[::2]), 2).repeat_interleave(2, 2).repeat_interleave(2, 3))
    title = f"FID of {len(images)} images in halves"
    print(f"{title:58s}   features   distance     GiB            FID  first features")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        random_inception(folder / "weights.pth")
        for half, images_of_half in zip(HALVES, (images[1::2], images[::2])):
            np.save(folder / f"{half}.npy", images_of_half.numpy())
            (folder / half).mkdir()
            for i, image in enumerate(images_of_half):
                to_pil_image(image).save(folder / half / f"{i:05d}.png")
        ours = None
        for name in FID_PACKAGES:
            if name != "ours" and not find_spec(name):
                print(f"{name} is not installed: not compared")
                continue
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                job = alone.submit(measure_fid, name, folder, args.device, args.threads)
                first, value, features, distance, peak = job.result()
            ours = first if ours is None else ours
            off = (first - ours).norm() / ours.norm()
            print(f"{name:58s} {features:8.0f} s {distance:8.2f} s {peak:7.2f} {value:14.9g}  off by {off:.1e}")


def main(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("--batch", type=cli.number(int, 1), default=128, help="images in a step")
    parser.add_argument("--repeats", type=cli.number(int, 1), default=5, help="timed calls, of which the median counts")
    parser.add_argument("--images", type=cli.number(int, 0, 10000), default=10000, help="test images whose FID is "
                        "computed, an hour on two cores; 0 for none")
    parser.add_argument("--root", type=cli.path, default="data", help="folder for Fashion-MNIST")
    parser.add_argument("--threads", type=cli.number(int, 1), default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="where to measure")
    args = parser.parse_args(argv)
    if args.batch % 4:
        raise cli.BadInput(f"--batch {args.batch}: D compares images four by four, so give a multiple of 4")
    if 0 < args.images < 4:
        raise cli.BadInput(f"--images {args.images}: a covariance of each half takes 4 or more; 0 leaves the FID out")
    images = load("fashion-mnist", "test", args.root)[:args.images] if args.images else None
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # as in training
    torch.manual_seed(0)

    bf16 = computes_in_bf16(args.device)
    print(f"torch {torch.__version__} on {args.device}, {args.threads} threads, batch {args.batch}")
    n = 8192 if args.device.type == "cuda" else 2048  # so large that starting it does not count
    peak = product_rate(torch.bfloat16 if bf16 else torch.float32, args.device, n)
    kind = "bfloat16" if bf16 else "float32"
    print(f"matrix product of {n}: {peak / 1e9:.1f} GFLOP/s in {kind}; this is 100 % below")
    if not bf16:
        slow = product_rate(torch.bfloat16, args.device, n=256)
        print(f"bfloat16 is emulated here ({slow / 1e9:.2f} GFLOP/s) and therefore off; networks run in float32")

    print(f"\n{'training step':58s} GFLOP/im  images/s   GFLOP/s of product")
    ours = None
    for name in reversed(PRESETS):
        network = UNet(**preset(name)).to(args.device)
        line = report(f"DDPM, preset {name}", ddpm_step(network, args, bf16), args, peak)
        report(f"DDGAN, preset {name}, T = 4, G and D", ddgan_step(args, name), args, peak)
        if bf16:  # the libraries below run in float32
            line = report(f"DDPM, preset {name}, float32", ddpm_step(network, args, False), args, peak)
        ours = ours or line  # the CPU preset's
    comparisons = {"diffusers": compare_with_diffusers,
                   "denoising_diffusion_pytorch": compare_with_denoising_diffusion_pytorch}
    for library, compare in comparisons.items():
        if find_spec(library):
            compare(args, peak, ours)
        else:
            print(f"{library} is not installed: not compared")

    print(f"\n{'sampling':58s} GFLOP/im  images/s   GFLOP/s of product")
    torch.backends.cudnn.benchmark = False  # as in sampling
    diffusion = Diffusion(4, device=args.device)
    for name in reversed(PRESETS):
        denoiser = UNet(**preset(name)).to(args.device)
        G = Generator(diffusion.alpha_bar, **preset(name)).to(args.device)
        ddim = sampling(Diffusion(1000, device=args.device).strided(10).ddim, denoiser, args)
        ddgan = sampling(lambda f, x: diffusion.ddgan(f, x, f.z_dim), G, args)
        report(f"DDPM, preset {name}, DDIM 10 steps", ddim, args, peak)
        report(f"DDGAN, preset {name}, T = 4", ddgan, args, peak)

    if args.images:
        print()
        compare_fid(args, images)


if __name__ == "__main__":
    cli.script(main)
