"""Where programs differ about the same words and seed, and what each of them does. Imports no torch.

Every difference is a field of `Conventions`, so a plan says each by name; a program is one row of `PROGRAMS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from sdxl_core.config import Config, ProgramName
from sdxl_core.errors import UsageError
from sdxl_core.typed_toml import suggestion

Start = Literal["root", "sigma", "root_at_top"]
Snap = Literal["level", "index", "none"]


class Conventions(Config):
    """What programs choose differently and every picture depends on; the defaults are this program's.

    Args:
        start: the noise that a picture from words begins with at its first level sigma is a standard normal draw times
            sqrt(1 + sigma^2) (root), sigma, or the root at the model's highest level alone (root_at_top).
        snap: between two trained levels a network of eps or v is told the nearest one, which then stands for sigma in
            all of the denoiser (level); the index of the one nearest in ln(sigma), while sigma stays (index); or a
            fraction between the two (none).
        drop_penultimate: the schedule is made for one step more, and its last level above 0 is left out.
        batch_noise: picture i of a prompt draws from a generator of its own, seeded seed + i (per_picture), or all
            of them are rows of the draws of one generator (one_stream).
        noise: of torch on the CPU (cpu), or as torch on CUDA draws it, computed on the CPU (cuda).
    """

    start: Start = "root"
    snap: Snap = "level"
    drop_penultimate: bool = False
    batch_noise: Literal["per_picture", "one_stream"] = "per_picture"
    noise: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True, slots=True)
class Program:
    """One row of the table.

    Args:
        title: what people call it.
        conventions: for every sampler and schedule that is not named below.
        empty_negative: whether the base's empty negative prompt becomes zeros or is encoded.
        schedules: what a name of ours means there, where that is another list.
        ends_of: a schedule whose first and last level bound those that have no ends of their own there.
        sigma_start: schedules that begin with noise times sigma there, but for samplers of `root_samplers`.
        root_samplers: samplers that keep latents of unit variance there, which makes their start a root.
        penultimate: samplers that leave out the last level above 0 there.
        source: where that was read.
    """

    title: str
    conventions: Conventions
    empty_negative: Literal["zeros", "encode"]
    source: str
    schedules: Mapping[str, str] = field(default_factory=dict)
    ends_of: str | None = None
    sigma_start: frozenset[str] = frozenset()
    root_samplers: frozenset[str] = frozenset()
    penultimate: frozenset[str] = frozenset()


PROGRAMS: Mapping[ProgramName, Program] = MappingProxyType(
    {
        "a1111": Program(
            "AUTOMATIC1111's web UI",
            Conventions(start="sigma", snap="none", noise="cuda"),
            "encode",
            "modules/sd_samplers_kdiffusion.py, sd_schedulers.py, rng.py and rng_philox.py",
            schedules={
                "beta": "beta_a1111",
                "kl_optimal": "kl_optimal_a1111",
                "align_your_steps": "align_your_steps_a1111",
                "turbo": "turbo_forge",
                "gits": "gits_forge",
            },
            penultimate=frozenset({"dpm_2", "dpm_2_ancestral", "dpmpp_3m_sde"}),
        ),
        "comfy": Program(
            "ComfyUI",
            Conventions(start="root_at_top", snap="index", batch_noise="one_stream"),
            "encode",
            "comfy/sample.py, samplers.py and model_sampling.py",
            penultimate=frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc"}),
        ),
        "diffusers": Program(
            "diffusers",
            Conventions(snap="none", batch_noise="one_stream"),
            "zeros",
            "pipelines/stable_diffusion_xl and schedulers/scheduling_euler_discrete.py",
            schedules={"beta": "beta_a1111"},
            ends_of="leading",
            sigma_start=frozenset({"trailing", "linspace"}),
            root_samplers=frozenset(
                {
                    "ddim",
                    "ddpm",
                    "deis",
                    "dpmpp_2m",
                    "dpmpp_2m_sde",
                    "dpmpp_3m_sde",
                    "lcm",
                    "sa_solver",
                    "tcd",
                    "uni_pc",
                }
            ),
        ),
        "sgm": Program(
            "Stability AI's generative-models",
            Conventions(batch_noise="one_stream", noise="cuda"),
            "zeros",
            "sgm/modules/diffusionmodules/sampling.py and denoiser.py",
        ),
    }
)


WORDS: Mapping[str, Mapping[object, str]] = MappingProxyType(
    {
        "start": {
            "root": "noise x sqrt(1 + sigma^2)",
            "sigma": "noise x sigma",
            "root_at_top": "noise x sqrt(1 + sigma^2) at the model's highest level, else x sigma",
        },
        "snap": {
            "level": "sigma becomes the nearest trained level",
            "index": "sigma stays, the network is told the nearest trained timestep",
            "none": "sigma stays, the network is told a fractional timestep",
        },
        "drop_penultimate": {False: "all levels", True: "one step more, its last level above 0 left out"},
        "batch_noise": {
            "per_picture": "picture i has a generator of its own, seed + i",
            "one_stream": "one generator draws for all pictures of a prompt",
        },
        "noise": {"cpu": "torch's on the CPU", "cuda": "that of torch on CUDA"},
    }
)
"""Convention -> value -> what it means."""


def resolve_program(name: str) -> ProgramName:
    """The row of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    found = next((known for known in PROGRAMS if known == name), None)
    if found is None:
        hint = f"one of: {', '.join(PROGRAMS)}"
        raise UsageError(f"unknown program {name!r}{suggestion(name, PROGRAMS)}", hint=hint)
    return found


def conventions_of(program: ProgramName | None, sampler: str, schedule: str) -> Conventions:
    """What a program does with a sampler and a schedule of ours; None for this program."""
    if program is None:
        return Conventions()
    row = PROGRAMS[program]
    changes: dict[str, object] = {}
    if schedule in row.sigma_start and sampler not in row.root_samplers:
        changes["start"] = "sigma"
    if sampler in row.penultimate:
        changes["drop_penultimate"] = True
    return row.conventions.model_copy(update=changes)


def empty_negative(program: ProgramName | None, kind: str) -> Literal["zeros", "encode"]:
    """What an empty negative prompt becomes: a refiner was not trained with zeros, every other kind of model was."""
    if kind == "refiner":
        return "encode"
    return "zeros" if program is None else PROGRAMS[program].empty_negative
