"""The U-Net of section 3.1 and what section 3.2 makes of it: denoiser, generator, discriminator.

    UNet             eps_theta(x_t, t)       the DDPM's denoiser
    Generator        G(x_t, z, t)            DDGAN's generator: the same network, z is an image beside x_t
    Discriminator    V(x_{t-1}, x_t, t)      the downward half with a linear output layer
    Critic           V, C_psi, x_0 of (x_{t-1}, t)    SIDDM's discriminator: the whole network with three heads

Residual blocks, attention and the embedding of t are those of Ho et al. 2020, appendix B; blocks are modulated by
the embedding as in Dhariwal and Nichol 2021, sec. 3.1.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

# The paper names no sizes. fold = 2 turns 2 x 2 pixels into channels, which saves three quarters of the operations.
PRESETS = {
    "gpu": {"width": 64, "mult": (1, 2, 4), "blocks": 2, "fold": 1},  # ours: half Ho et al.'s width for CIFAR-10
    "cpu": {"width": 48, "mult": (1, 2), "blocks": 1, "fold": 2},  # ours: up to an hour on one core
}


def preset(name, width=None):
    """The sizes of a preset as arguments of the networks below, with another width where one is given."""
    return {**PRESETS[name], **({"width": width} if width else {})}


def embed_time(t, dim):
    """Sinusoidal embedding of t (Vaswani et al. 2017, sec. 3.5): int64 (B,) -> float32 (B, dim), dim even."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None] * frequencies  # (B, 1) * (dim/2,) -> (B, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def time_mlp(width):
    """The layers that learn from embed_time's (B, width): -> (B, 4 width)."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))


def norm(channels):
    return nn.GroupNorm(8, channels)  # 8 groups: ours; they have 6 channels or more in both presets


class ResBlock(nn.Module):
    """x + f(x, emb): two 3 x 3 convolutions; emb (B, c_emb) scales and shifts what is between them."""

    def __init__(self, c_in, c_out, c_emb):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.modulate = nn.Linear(c_emb, 2 * c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # every block starts without its convolutions, as in Ho et al.'s code

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(emb)[:, :, None, None].chunk(2, dim=1)  # (B, 2C) -> 2 x (B, C, 1, 1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """x + self-attention over the H*W positions, one head."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x):
        qkv = self.qkv(self.norm(x)).flatten(2).mT  # (B, C, H, W) -> (B, 3C, H*W) -> (B, H*W, 3C)
        q, k, v = qkv.chunk(3, dim=2)  # 3 x (B, H*W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.mT.unflatten(2, x.shape[2:]))  # (B, H*W, C) -> (B, C, H*W) -> (B, C, H, W)


class Down(nn.Module):
    """The downward half: `blocks` residual blocks a level, a strided convolution between levels.

    forward(x, emb) returns every block's output (B, C_i, H_i, W_i), highest resolution first.
    """

    def __init__(self, c_in, width, mult, blocks, c_emb):
        super().__init__()
        c = [m * width for m in mult]
        self.conv_in = nn.Conv2d(c_in, c[0], 3, padding=1)
        self.levels = nn.ModuleList(nn.ModuleList(ResBlock(i, i, c_emb) for _ in range(blocks)) for i in c)
        self.shrink = nn.ModuleList(nn.Conv2d(i, j, 3, stride=2, padding=1) for i, j in pairwise(c))

    def forward(self, x, emb):
        h, features = self.conv_in(x), []
        for i, level in enumerate(self.levels):
            if i > 0:
                h = self.shrink[i - 1](h)  # (B, C, H, W) -> (B, C', H/2, W/2)
            for block in level:
                h = block(h, emb)
                features.append(h)
        return features


class UNet(nn.Module):
    """eps_theta(x_t, t): x_t (B, c_in, H, W), t int64 (B,) -> (B, channels, H, W), sec. 3.1; c_in: by default channels.

    width: channels at the highest resolution, a multiple of 8; mult: its multiple at each level; blocks: residual
    blocks a level; fold: fold x fold pixels are worked on as one. H and W are multiples of fold 2^(levels - 1).
    learned: as many channels again, for a learned variance (Diffusion.learned_variance).
    smooth: enlarge bilinearly on the way up. G must, or the grid of folded pixels shows in its samples; eps_theta must
    not: neighbouring pixels of the noise are independent, so that blurring them would hurt.
    """

    def __init__(self, channels=1, width=64, mult=(1, 2, 4), blocks=2, fold=1, smooth=False, c_in=None, learned=False):
        super().__init__()
        c_in = c_in or channels
        self.width, self.fold, self.smooth = width, fold, smooth
        c, c_emb = [m * width for m in mult], 4 * width
        self.embed_t = time_mlp(width)
        self.down = Down(c_in * fold**2, width, mult, blocks, c_emb)
        self.mid = nn.ModuleList([ResBlock(c[-1], c[-1], c_emb), ResBlock(c[-1], c[-1], c_emb)])
        self.attention = Attention(c[-1])
        self.levels = nn.ModuleList(nn.ModuleList(ResBlock(2 * i, i, c_emb) for _ in range(blocks)) for i in c)
        self.grow = nn.ModuleList(nn.Conv2d(j, i, 3, padding=1) for i, j in pairwise(c))
        self.norm_out = norm(c[0])
        # at full resolution again, with the input itself; 16 channels: ours
        self.unfold = nn.Conv2d((c[0] if smooth else c[0] // fold**2) + c_in, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 2 * channels if learned else channels, 3, padding=1)

    def forward(self, x_t, t):
        emb = F.silu(self.embed_t(embed_time(t, self.width)))  # (B,) -> (B, 4 width)
        features = self.down(F.pixel_unshuffle(x_t, self.fold), emb)  # (B, C, H, W) -> (B, C fold^2, H/fold, W/fold)
        h = self.mid[0](features[-1], emb)
        h = self.mid[1](self.attention(h), emb)
        for i, level in reversed(list(enumerate(self.levels))):
            for block in level:
                h = block(torch.cat([h, features.pop()], dim=1), emb)  # 2 x (B, C, H, W) -> (B, 2C, H, W)
            if i > 0:
                mode = "bilinear" if self.smooth else "nearest"
                h = F.interpolate(self.grow[i - 1](h), scale_factor=2.0, mode=mode)  # (B, C', H, W) -> (B, C, 2H, 2W)
        h = F.silu(self.norm_out(h))
        if self.smooth:
            h = F.interpolate(h, scale_factor=float(self.fold), mode="bilinear")  # -> (B, C, fold H, fold W)
        else:
            h = F.pixel_shuffle(h, self.fold)  # -> (B, C/fold^2, fold H, fold W)
        return self.out(F.silu(self.unfold(torch.cat([h, x_t], dim=1))))


class Generator(UNet):
    """G(x_t, z, t) -> x_0 in [-1, 1], sec. 3.2: x_t (B, channels, H, W), z (B, z_dim), t int64 (B,).

    alpha_bar: the table (T+1,) of the Diffusion that trains and samples it; size = (H, W). A linear layer makes z an
    image of noise beside x_t. G could choose among the possible x_0 by the noise in x_t as well as by z, and would then
    ignore z. So x_t enters as c_t x_t, turned down where it is mostly noise, and z's image as sqrt(1 - c_t^2) of
    itself. With z_dim = 0 there is neither: G(x_t, t) is one image.
    """

    def __init__(self, alpha_bar, z_dim=100, channels=1, size=(28, 28), **sizes):
        super().__init__(channels, c_in=2 * channels if z_dim else channels, smooth=True, **sizes)
        self.z_dim = z_dim
        if z_dim:
            self.embed_z = nn.Linear(z_dim, channels * size[0] * size[1], bias=False)
            nn.init.normal_(self.embed_z.weight, std=z_dim**-0.5)  # an image of variance 1, as x_t's
            # sqrt(alpha_bar_t) x_0 against a twentieth of the noise's variance: 0.05 is ours
            self.register_buffer("c", torch.sqrt(alpha_bar / (alpha_bar + 0.05 * (1 - alpha_bar))), persistent=False)

    def forward(self, x_t, z, t):
        if self.z_dim:
            c = self.c[t].view(-1, 1, 1, 1)
            noise = torch.sqrt(1 - c**2) * self.embed_z(z).view_as(x_t)  # (B, z_dim) -> (B, channels, H, W)
            x_t = torch.cat([c * x_t, noise], dim=1)  # -> (B, 2 channels, H, W)
        return torch.tanh(super().forward(x_t, t))


def minibatch_stddev(h, group=4):
    """How much `group` neighbours in the batch differ: (B, C, H, W) -> (B, 1, H, W). Karras et al. 2018, sec. 3.

    Groups of four as in StyleGAN. Raises ValueError unless group divides B.
    """
    if len(h) % group:
        raise ValueError(f"a batch of {len(h)}: D compares images {group} by {group}, so give a multiple of {group}")
    groups = h.float().unflatten(0, (-1, group))  # (B, C, H, W) -> (B/4, 4, C, H, W)
    # -> (B/4, C, H, W); groups.var(1) takes six times as long on a CPU
    variance = (groups - groups.mean(1, keepdim=True)).square().mean(1)
    stddev = torch.sqrt(variance + 1e-8).mean((1, 2, 3)).repeat_interleave(group)  # -> (B/4,) -> (B,)
    return stddev.to(h.dtype).view(-1, 1, 1, 1).expand_as(h[:, :1])


class Discriminator(nn.Module):
    """V(x_{t-1}, x_t, t): two (B, channels, H, W) and t int64 (B,) -> logits (B,), large for real, sec. 3.2.

    The U-Net's downward half and a linear output layer; the arguments are the U-Net's, and size = (H, W). It is also
    told how much images differ from their neighbours in the batch, of which B must be a multiple of 4. With reg it can
    also predict x_0 (B, channels, H, W), for the regulariser (14) of Xu et al. 2023.
    """

    def __init__(self, channels=1, width=64, mult=(1, 2, 4), blocks=2, fold=1, size=(28, 28), reg=False):
        super().__init__()
        self.width, self.fold, self.stride = width, fold, fold * 2 ** (len(mult) - 1)
        c, stride = mult[-1] * width, self.stride
        self.embed_t = time_mlp(width)
        self.down = Down(2 * channels * fold**2, width, mult, blocks, 4 * width)
        self.norm_out = norm(c)
        self.out = nn.Linear((c + 1) * (size[0] // stride) * (size[1] // stride), 1)
        self.to_x_0 = nn.Conv2d(c, channels * stride**2, 1) if reg else None

    def features(self, x_prev, x_t, t):
        emb = F.silu(self.embed_t(embed_time(t, self.width)))
        h = torch.cat([x_prev, x_t], dim=1)  # 2 x (B, C, H, W) -> (B, 2C, H, W)
        h = F.pixel_unshuffle(h, self.fold)  # -> (B, 2C fold^2, H/fold, W/fold)
        return F.silu(self.norm_out(self.down(h, emb)[-1]))  # -> (B, C', H/stride, W/stride)

    def predict_x_0(self, x_prev, x_t, t):
        """x_0 from the pair, (B, channels, H, W), with reg."""
        x_0 = self.to_x_0(self.features(x_prev, x_t, t))
        return F.pixel_shuffle(x_0, self.stride)  # (B, C stride^2, H/stride, W/stride) -> (B, C, H, W)

    def forward(self, x_prev, x_t, t):
        h = self.features(x_prev, x_t, t)
        h = torch.cat([h, minibatch_stddev(h)], dim=1)  # (B, C, H, W) -> (B, C+1, H, W)
        return self.out(h.flatten(1)).squeeze(1)  # (B, C, H, W) -> (B, C*H*W) -> (B,)


class Critic(UNet):
    """SIDDM's discriminator, Xu et al. 2023, secs. 3.2, 3.3: (x_{t-1}, t) -> V (B,), C_psi and x_0.

    C_psi and x_0 are (B, channels, H, W). A U-Net with three 1 x 1 heads: V, large for real, is the mean of a logit for
    each pixel; sqrt(alpha_t) C_psi predicts x_t, so that C_psi is x_{t-1} itself where p_theta is the true posterior;
    x_0 is for the regulariser, their (14).
    """

    def __init__(self, channels=1, **sizes):
        super().__init__(channels, **sizes)
        self.out = nn.Conv2d(16, 1 + 2 * channels, 1)

    def forward(self, x_prev, t):
        channels = x_prev.shape[1]
        V, correction, x_0 = super().forward(x_prev, t).split([1, channels, channels], dim=1)
        return V.mean(dim=(1, 2, 3)), x_prev + correction, x_0  # (B, 1, H, W) -> (B,)
