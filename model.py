"""A trained model: rebuild it from its file, draw images, predict x_0.

    from model import load
    images = load("weights/ddgan.pt").generate(16)    # uint8 (16, 1, 28, 28)
"""

import argparse
import contextlib
import os
import time
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

import cli
from cli import BadInput, one_line
from data import normalize, to_uint8
from diffusion import Diffusion, at
from unet import Generator, UNet

NETWORKS = {"DDPM": UNet, "DDGAN": Generator, "SIDDM": Generator}
PREDICTIONS = ("eps", "x_0", "mean")  # what a denoiser may predict from x_t: Ho et al. 2020, sec. 3.2


def computes_in_bf16(device):
    """Whether the hardware itself computes in bfloat16; a CPU that emulates it is far slower than in float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = getattr(torch.cpu, "get_capabilities", dict)()  # none: this torch is too old to say
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # x86, x86, ARM


def load(path, device=None):
    """The Model that a trainer wrote to `path` (model.pt, checkpoint.pt, or the run's folder), with its EMA weights.

    device: by default the GPU if there is one. Raises BadInput for a file that is missing, damaged or not one of ours.
    """
    device = cli.default_device() if device is None else device
    path = model_path(path)
    saved = read_checkpoint(path, device)
    try:
        model = Model(saved["args"], device)
        model.network.load_state_dict(saved["weights"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path} does not fit this project's networks ({one_line(error)[:99]}): train it "
                       "again") from error
    if not all(weight.isfinite().all() for weight in model.network.state_dict().values()):
        raise BadInput(f"{path} has weights that are NaN or infinite: its training diverged; use an earlier checkpoint")
    model.network.eval()  # not requires_grad_(False): autocast caches the casts only of what requires gradients
    return model


def model_path(path):
    """The model.pt in a run's folder, or any other path as it is: a Path."""
    inside = Path(path, "model.pt")
    return inside if os.path.exists(inside) else Path(path)


def read_checkpoint(path, device="cpu"):
    """The dict in a trainer's file. Raises BadInput, as load does."""
    advice = "give the model.pt or checkpoint.pt that a trainer wrote"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a foreign pickle before it refuses it
            saved = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}): {advice}") from error
    except Exception as error:  # unpickling a damaged file can raise nearly anything
        raise BadInput(f"{path} is not a checkpoint, or it is damaged: {advice}") from error
    args = saved.get("args") if isinstance(saved, dict) else None
    if not isinstance(args, dict) or args.get("method") not in [*NETWORKS] or "weights" not in saved:
        raise BadInput(f"{path} holds no {', '.join(NETWORKS)} of this project: {advice}")
    return saved


class Model:
    """A network, the diffusion that it belongs to, and how to draw images from both.

    `args` is what a checkpoint says of its network in plain values: method (a key of NETWORKS), T, schedule, shape
    (C, H, W) and network (the arguments of its class), besides the trainer's flags and how far it came.
    """

    def __init__(self, args, device="cpu"):
        self.args, self.method, self.T, self.device = args, args["method"], args["T"], torch.device(device)
        self.shape = tuple(args["shape"])
        self.z_dim, self.learned = args["network"].get("z_dim", 0), args["network"].get("learned", False)
        self.diffusion = Diffusion(self.T, args["schedule"], device)
        more = {} if self.method == "DDPM" else {"alpha_bar": self.diffusion.alpha_bar, "size": self.shape[1:]}
        self.network = NETWORKS[self.method](**args["network"], **more).to(device)

    @property
    def label(self):
        """The name for figures and tables: the method, a DDGAN's with its objective."""
        return f"DDGAN {self.args.get('objective', 'js')}" if self.method == "DDGAN" else self.method

    def autocast(self, amp=None):
        """bfloat16 autocast, if amp; by default where the hardware has it, unless trained with --no-amp."""
        if amp is None:
            amp = self.args.get("amp") is not False and computes_in_bf16(self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=amp)

    def eps_theta(self, x_t, t):
        """The noise in x_t by a DDPM, whichever of PREDICTIONS its network has learned: (B, ...), (B,) -> (B, ...)."""
        return self.eps_and_v(x_t, t)[0]

    def eps_and_v(self, x_t, t):
        """eps_theta, and v of Diffusion.learned_variance, (B, ...), or None where no variance was learned."""
        return self.eps_and_v_from(self.network(x_t, t), x_t, t)

    def eps_and_v_from(self, output, x_t, t):
        """eps_and_v from what the network gave for x_t and t."""
        output, v = split_v(output.float(), x_t)
        return eps_from(self.args.get("predict", "eps"), output, x_t, t, self.diffusion), v

    def sampler(self, sampler=None, steps=None, eta=None, variance=None, temperature=None, start=None):
        """The function x_t -> x_0 that the flags ask for, and its network evaluations per image.

        start: the t that it begins at (default T); sampler: "ancestral" (default) or "ddim", on `steps` of the steps
        from there (default all), DDIM with eta (default 0), ancestral sampling with the variance "beta_tilde" or "beta"
        (default: the learned one, if there is, or beta_tilde); temperature: of a generator's chain (default 1).
        Raises BadInput for what this method does not have.
        """
        start = self.T if start is None else start
        if not 1 <= start <= self.T:
            raise BadInput(f"--from {start}: this {self.method} has the steps 1 to {self.T}, choose one of them")
        if sampler not in (None, "ancestral", "ddim"):
            raise BadInput(f"--sampler {sampler} is unknown: choose ancestral or ddim")
        if variance not in (None, "beta_tilde", "beta"):
            raise BadInput(f"--variance {variance} is unknown: choose beta_tilde or beta")
        if eta is not None and not 0 <= eta <= 1:
            raise BadInput(f"--eta {eta}: choose between 0 (deterministic) and 1 (ancestral)")
        if temperature is not None and not 0 <= temperature <= 1:
            raise BadInput(f"--temperature {temperature}: choose between 0 (no noise) and 1 (the posterior's)")
        if self.method != "DDPM":
            for flag, value in (("--sampler", sampler), ("--steps", steps), ("--eta", eta), ("--variance", variance)):
                if value is not None:
                    raise BadInput(f"{flag} {value} is for DDPMs; this {self.method} always takes its T = {self.T} "
                                   "steps: leave it out")
            if temperature is not None and start == 1:
                raise BadInput(f"--temperature {temperature}: from t = 1 no step adds noise: leave it out")
            temperature = 1.0 if temperature is None else temperature
            process = self.diffusion.strided(start, start)
            return lambda x_t: process.ddgan(self.network, x_t, self.z_dim, temperature), start
        if temperature is not None:
            raise BadInput(f"--temperature {temperature} is for generators, and this is a DDPM: leave it out")
        if eta is not None and sampler != "ddim":
            raise BadInput(f"--eta {eta} is for --sampler ddim: add that, or leave --eta out")
        if variance is not None and sampler == "ddim":
            raise BadInput(f"--variance {variance} is for --sampler ancestral: leave it out, or give DDIM an --eta")
        if steps is not None and not 1 <= steps <= start:
            raise BadInput(f"--steps {steps}: there are {start} steps from t = {start}, choose from 1 to {start}")
        process = self.diffusion.strided(steps or start, start)
        if sampler == "ddim":
            return lambda x_t: process.ddim(self.eps_theta, x_t, eta or 0.0), process.T
        if self.learned and variance is None:
            return lambda x_t: process.ancestral(self.eps_and_v, x_t, "learned"), process.T
        return lambda x_t: process.ancestral(self.eps_theta, x_t, variance or "beta_tilde"), process.T

    def sampler_name(self, sampler=None, eta=None, variance=None, temperature=None, **_):
        """What tables call the sampler of these arguments: "" for a generator's at temperature 1."""
        if self.method != "DDPM":
            return "" if temperature in (None, 1) or self.T == 1 else f"temperature {temperature:g}"
        name = f"ddim eta {eta or 0:g}" if sampler == "ddim" else "ancestral"
        return f"{name} beta" if variance == "beta" else name

    def fast_sampler(self):
        """The arguments of `sampler` for a look at a model in training: DDIM with 50 steps for a DDPM, else none."""
        return {"sampler": "ddim", "steps": min(50, self.T)} if self.method == "DDPM" else {}

    def generate(self, n, seed=0, batch=500, amp=None, progress=False, edit=None, **sampler_arguments):
        """Draw n images: uint8 (n, C, H, W) on the CPU. Leaves the caller's random state as it was.

        edit: uint8, n or more of (C, H, W), to begin from, noised to t = `start` by eq. (2), not x_T ~ N(0, I).
        A seed gives the same images only with the same n and batch: each batch draws its noise at once, step by step.
        amp as for autocast, sampler_arguments as for sampler. Raises BadInput if the samples are not finite, for a
        start below T without an edit, and for an edit without a start or of another shape.
        """
        sample, _ = self.sampler(**sampler_arguments)
        start = sampler_arguments.get("start")
        if edit is None and (start or self.T) < self.T:
            raise BadInput(f"--from {start} needs an --edit FILE to begin from: x_{start} is not pure noise")
        if edit is not None and (start is None or len(edit) < n or tuple(edit.shape[1:]) != self.shape):
            raise BadInput(f"an edit of shape {tuple(edit.shape)} from {start}: give {(n, *self.shape)} and a start")
        images = []
        bar = tqdm(total=n, unit="img", disable=not progress)
        with bar, seeded(seed), self.autocast(amp):
            for first in range(0, n, batch):
                x_t = torch.randn(min(batch, n - first), *self.shape, device=self.device)
                if edit is not None:
                    t = torch.full((len(x_t),), start, device=self.device)
                    x_t = self.diffusion.q_sample(normalize(edit[first:first + len(x_t)].to(self.device)), t, eps=x_t)
                x_0 = sample(x_t)
                try:
                    images.append(to_uint8(x_0).cpu())
                except ValueError as error:
                    raise BadInput(f"this {self.label} draws images that are NaN or infinite: try --no-amp, or train "
                                   "it again") from error
                bar.update(len(x_t))
        return torch.cat(images)

    def generate_timed(self, n, seed, batch, **arguments):
        """What generate draws, with its progress shown, and the seconds that it took: (images, float).

        On a GPU the first batch is drawn once before, untimed and unshown: it loads the GPU's libraries.
        """
        if self.device.type == "cuda":
            self.generate(min(n, batch), seed, batch, **arguments)
        start = time.perf_counter()
        images = self.generate(n, seed, batch, progress=True, **arguments)
        return images, time.perf_counter() - start

    @torch.no_grad()
    def predict_x_0(self, x_t, t):
        """x_0 as it is predicted from x_t at once, (B, ...): a DDPM's mean, else G(x_t, z, t) with a z for each."""
        if self.method == "DDPM":
            return self.diffusion.x_0_from_eps(x_t, self.eps_theta(x_t, t), t).clamp(-1, 1)
        return self.network(x_t, torch.randn(len(x_t), self.z_dim, device=x_t.device), t)


@contextlib.contextmanager
def seeded(seed):
    """Within the block torch's random numbers follow from seed; after it the caller's go on as if nothing had been."""
    # manual_seed seeds all GPUs; to fork where none is in use would start CUDA
    with torch.random.fork_rng(range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)):
        torch.manual_seed(seed)
        yield


def split_v(output, x_t):
    """A denoiser's output (B, C or 2 C, ...) as its prediction (B, C, ...) and v, or None.

    v lies in about [0, 1]; the output's second half is 2 v - 1.
    """
    C = x_t.shape[1]
    return output[:, :C], (output[:, C:] + 1) / 2 if output.shape[1] > C else None


def eps_from(predict, output, x_t, t, diffusion):
    """eps (B, ...) from the output (B, ...) of a network that predicts "eps", "x_0" or "mean", the posterior's.

    Ho et al. 2020, sec. 3.2.
    """
    if predict == "x_0":
        return diffusion.eps_from_x_0(x_t, output, t)
    if predict == "mean":  # = 1/sqrt(alpha_t) (x_t - beta_t/sqrt(1 - alpha_bar_t) eps), Ho et al. 2020, eq. (11)
        tables = diffusion.alpha, diffusion.beta, diffusion.one_minus_alpha_bar
        alpha, beta, variance = (at(table, t, like=x_t) for table in tables)
        return (x_t - torch.sqrt(alpha) * output) * torch.sqrt(variance) / beta
    return output


# -- flags ----------------------------------------------------------------------------------------------------


OF_DDPMS = ("sampler", "steps", "eta", "variance")  # flags of `Model.sampler`
SAMPLER_FLAGS = (*OF_DDPMS, "temperature")


def add_sampler_flags(parser):
    """The flags of `Model.sampler` and `Model.generate`."""
    flag = parser.add_argument
    flag("--sampler", choices=["ancestral", "ddim"], help="for a DDPM: Algorithm 2 (default: ancestral), or DDIM")
    flag("--steps", type=cli.number(int, 1), help="for a DDPM: evenly spaced steps of its T, or of 1..t with --from "
         "(default: all)")
    flag("--eta", type=cli.number(float, 0, 1), help="for DDIM: its noise, from 0 (default: none) to 1 (ancestral)")
    flag("--variance", choices=["beta_tilde", "beta"], help="for ancestral sampling: its noise sigma_t^2 (default: "
         "what was learned, or the posterior's, beta_tilde)")
    flag("--temperature", type=cli.number(float, 0, 1), help="for a DDGAN or SIDDM: scales the noise that each "
         "step adds (default: 1, as the paper); less breaks fewer images, and varies less")
    flag("--seed", type=cli.SEED, default=0, help="of x_T, z and the noise of each step")
    flag("--batch", type=cli.number(int, 1), default=500, help="images at a time: more is faster until memory ends; "
         "another batch, or another number of images, draws other images from the same seed")
    flag("--device", type=cli.device, default=cli.default_device(), help="where to sample")
    flag("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (default: where the hardware has it)")


def sampler_flags(args, models):
    """For each model its keyword arguments of Model.sampler; in a list, a flag is meant for the models that have it.

    Raises BadInput for wrong flags, before any work, and for flags of a sampler where there is no model.
    """
    given = {name: getattr(args, name) for name in SAMPLER_FLAGS if getattr(args, name) is not None}
    if given and not models:
        name, value = next(iter(given.items()))
        raise BadInput(f"--{name} {value}: there is no model to draw from: leave it out")

    def has(model, name):
        return model.method == "DDPM" if name in OF_DDPMS else model.method != "DDPM" and model.T > 1

    flags = [{name: value for name, value in given.items() if has(model, name) or not any(has(m, name) for m in models)}
             for model in models]
    for model, arguments in zip(models, flags):
        model.sampler(**arguments)
    return flags
