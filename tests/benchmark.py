"""How fast the networks train and sample, against a plain matrix product and against the field's own libraries.

    python tests/benchmark.py                    # all cores; --threads 1 for one
    pip install diffusers denoising-diffusion-pytorch pytorch-fid    # for the comparisons, all of them optional

Operations are counted by torch.utils.flop_counter: those of convolutions and matrix products, two a multiply-add.
"""

import argparse
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_ddgan
import train_ddpm
from diffusion import Diffusion
from fid import frechet_distance
from unet import PRESETS, Discriminator, Generator, UNet, bf16_autocast, computes_in_bf16, preset


def seconds(function, device, repeats):
    """Median wall time of function() after one call to warm up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def operations(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def product_rate(dtype, device, n=2048):
    """FLOP/s of an n x n matrix product."""
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ b, device, 5)


def report(name, function, images, args, peak):
    """Time function, which handles that many images; print a line and return its images/s and operations per image."""
    count = operations(function) / images
    rate = images / seconds(function, args.device, args.repeats)
    print(f"{name:58s} {count / 1e9:7.3f} {rate:9.1f} {rate * count / 1e9:9.1f} {rate * count / peak:6.0%}")
    return rate, count


def ddpm_step(network, args, amp, call=lambda network, x, t: network(x, t)):
    """One training step of a denoiser as a function of nothing."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    diffusion, x_0 = Diffusion(1000, device=args.device), torch.randn(args.batch, 1, 28, 28, device=args.device)
    flags = argparse.Namespace(amp=amp, predict="eps", loss="simple")
    return lambda: train_ddpm.train_step(lambda x, t: call(network, x, t), optimizer, x_0, diffusion, flags)


def ddgan_step(args, name):
    """One training step of train_ddgan.py without its penalty, T = 4."""
    G, D, diffusion = Generator(**preset(name)).to(args.device), Discriminator(**preset(name)).to(args.device), Diffusion(4, device=args.device)
    optimizer_G, optimizer_D = torch.optim.Adam(G.parameters(), fused=True), torch.optim.Adam(D.parameters(), fused=True)
    x_0 = torch.randn(args.batch, 1, 28, 28, device=args.device)
    flags = argparse.Namespace(objective="js", generator="non-saturating", r1=0, drift=0, z_dim=64, amp=None)
    return lambda: train_ddgan.train_step(G, D, optimizer_G, optimizer_D, x_0, diffusion, flags, 0)


def sampling(sample, network, args):
    def run():
        with torch.no_grad(), bf16_autocast(args.device):
            sample(network.eval(), torch.randn(args.batch, 1, 28, 28, device=args.device))
    return run


def compare_with_diffusers(args, peak, ours):
    from diffusers import UNet2DModel

    levels = {"sample_size": 28, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    # as its users build it: three levels 28-14-7, attention in the middle; the width that comes nearest in operations
    def build(width):
        return UNet2DModel(**levels, **blocks, block_out_channels=(width, 2 * width, 2 * width)).to(args.device)

    call = lambda network, x, t: network(x, t).sample
    one = argparse.Namespace(**vars(args) | {"batch": 2})
    counts = {width: operations(ddpm_step(build(width), one, False, call)) / 2 for width in (8, 16, 24, 32, 40, 48)}
    width = min(counts, key=lambda width: abs(counts[width] - ours[1]))
    rate, count = report(f"diffusers UNet2DModel, {width} channels, float32", ddpm_step(build(width), args, False, call), args.batch, args, peak)
    print(f"  ours against diffusers at equal operations: {ours[0] * ours[1] / (rate * count):.2f} times the images/s")


def compare_with_denoising_diffusion_pytorch(args, peak, ours):
    from denoising_diffusion_pytorch import Unet

    network = Unet(dim=32, channels=1, dim_mults=(1, 2, 2)).to(args.device)
    rate, count = report("denoising-diffusion-pytorch Unet, dim 32, float32", ddpm_step(network, args, False), args.batch, args, peak)
    print(f"  ours against it at equal operations: {ours[0] * ours[1] / (rate * count):.2f} times the images/s")


def compare_with_pytorch_fid():
    from pytorch_fid.fid_score import calculate_frechet_distance

    features = [torch.rand(3000, 2048, dtype=torch.float64) @ torch.randn(2048, 2048, dtype=torch.float64) / 45 for _ in range(2)]
    (mu, sigma), (mu_, sigma_) = ((f.mean(0), f.T.cov()) for f in features)
    start = time.perf_counter()
    mine = frechet_distance(mu, sigma, mu_, sigma_)
    middle = time.perf_counter()
    theirs = calculate_frechet_distance(mu.numpy(), sigma.numpy(), mu_.numpy(), sigma_.numpy())
    end = time.perf_counter()
    print(f"Frechet distance of 2048 features: ours {mine:.6f} in {middle - start:.1f} s, pytorch-fid {theirs:.6f} in {end - middle:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    bf16 = computes_in_bf16(args.device)
    print(f"torch {torch.__version__} on {args.device}, {args.threads} threads, batch {args.batch}")
    peak = product_rate(torch.bfloat16 if bf16 else torch.float32, args.device)
    print(f"matrix product of 2048: {peak / 1e9:.1f} GFLOP/s in {'bfloat16' if bf16 else 'float32'}; this is 100 % below")
    if not bf16:
        slow = product_rate(torch.bfloat16, args.device, n=256)
        print(f"bfloat16 is emulated here ({slow / 1e9:.2f} GFLOP/s) and therefore off; networks run in float32")

    print(f"\n{'training step':58s} GFLOP/im  images/s   GFLOP/s of product")
    ours = None
    for name in reversed(PRESETS):
        network = UNet(**preset(name)).to(args.device)
        line = report(f"DDPM, preset {name}", ddpm_step(network, args, None), args.batch, args, peak)
        report(f"DDGAN, preset {name}, T = 4, G and D", ddgan_step(args, name), args.batch, args, peak)
        ours = ours or line  # the CPU preset's
    for library, compare in (("diffusers", compare_with_diffusers), ("denoising_diffusion_pytorch", compare_with_denoising_diffusion_pytorch)):
        if find_spec(library):
            compare(args, peak, ours)
        else:
            print(f"{library} is not installed: not compared")

    print(f"\n{'sampling':58s} GFLOP/im  images/s   GFLOP/s of product")
    for name in reversed(PRESETS):
        denoiser, G = UNet(**preset(name)).to(args.device), Generator(**preset(name)).to(args.device)
        report(f"DDPM, preset {name}, DDIM 10 steps", sampling(lambda f, x: Diffusion(1000, device=args.device).strided(10).ddim(f, x), denoiser, args), args.batch, args, peak)
        report(f"DDGAN, preset {name}, T = 4", sampling(lambda f, x: Diffusion(4, device=args.device).ddgan(f, x, 64), G, args), args.batch, args, peak)

    print()
    if find_spec("pytorch_fid"):
        compare_with_pytorch_fid()
    else:
        print("pytorch_fid is not installed: not compared")


if __name__ == "__main__":
    main()
