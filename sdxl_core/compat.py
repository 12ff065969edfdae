"""Where programs differ about the same words and seed, and what each of them does. Imports no torch.

Every difference is a field of `Conventions`, so a plan says each by name; a program is one row of `PROGRAMS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from sdxl_core.config import Config, ProgramName
from sdxl_core.unknown import unknown

Start = Literal["root", "sigma", "root_at_top"]
Snap = Literal["level", "index", "none"]
StrengthRule = Literal["share", "truncated", "below_one", "levels", "exact"]


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
        strength: of n steps a picture that starts from another walks n x strength, rounded down (share; truncated
            keeps the error of the product), never all of them (below_one), those of the last (n + 1) x strength
            levels (levels), or n of a schedule that is longer by as much (exact). Never fewer than one.
    """

    start: Start = "root"
    snap: Snap = "level"
    drop_penultimate: bool = False
    batch_noise: Literal["per_picture", "one_stream"] = "per_picture"
    noise: Literal["cpu", "cuda"] = "cpu"
    strength: StrengthRule = "share"


@dataclass(frozen=True, slots=True)
class Habits:
    """What a program does with some of the samplers.

    Args:
        conventions: for every schedule that is not in `sigma_start`.
        schedules: what a name of ours means there, where that is another list.
        ends_of: the schedule whose first and last level above 0 bound karras, exponential and beta there, where that is
            not the model's range.
        sigma_start: schedules that begin with noise times sigma.
    """

    conventions: Conventions
    schedules: Mapping[str, str] = field(default_factory=dict)
    ends_of: str | None = None
    sigma_start: frozenset[str] = frozenset()

    def but(self, **conventions: object) -> "Habits":
        """The same with other conventions."""
        return replace(self, conventions=self.conventions.model_copy(update=conventions))


@dataclass(frozen=True, slots=True)
class Program:
    """One row of the table.

    Args:
        title: what people call it.
        source: where its habits were read.
        empty_negative: whether the base's empty negative prompt becomes zeros or is encoded.
        habits: with most samplers.
        others: samplers -> habits with those.
    """

    title: str
    source: str
    empty_negative: Literal["zeros", "encode"]
    habits: Habits
    others: Mapping[frozenset[str], Habits] = field(default_factory=dict)

    def with_sampler(self, sampler: str) -> Habits:
        """The habits with a sampler."""
        return next((habits for samplers, habits in self.others.items() if sampler in samplers), self.habits)


_A1111 = Habits(
    Conventions(start="sigma", snap="none", noise="cuda", strength="below_one"),
    {
        "beta": "beta_a1111",
        "kl_optimal": "kl_optimal_a1111",
        "align_your_steps": "align_your_steps_a1111",
        "turbo": "turbo_forge",
        "gits": "gits_forge",
    },
)
_COMFY = Habits(Conventions(start="root_at_top", snap="index", batch_noise="one_stream", strength="exact"))
_DIFFUSERS = Habits(
    Conventions(snap="none", batch_noise="one_stream", strength="truncated"),
    {"beta": "beta_a1111"},
    ends_of="leading",
    sigma_start=frozenset({"trailing", "linspace"}),
)
_DIFFUSERS_MULTISTEP = Habits(
    _DIFFUSERS.conventions.model_copy(update={"snap": "index"}),
    {"beta": "beta_a1111", "leading": "leading_multistep", "linspace": "linspace_multistep"},
)

PROGRAMS: Mapping[ProgramName, Program] = MappingProxyType(
    {
        "a1111": Program(
            "AUTOMATIC1111's web UI",
            "modules/sd_samplers_kdiffusion.py, sd_schedulers.py, processing.py and rng_philox.py",
            "encode",
            _A1111,
            {frozenset({"dpm_2", "dpm_2_ancestral", "dpmpp_3m_sde"}): _A1111.but(drop_penultimate=True)},
        ),
        "comfy": Program(
            "ComfyUI",
            "comfy/sample.py, samplers.py and model_sampling.py",
            "encode",
            _COMFY,
            {frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc"}): _COMFY.but(drop_penultimate=True)},
        ),
        "diffusers": Program(
            "diffusers",
            "pipelines/stable_diffusion_xl and schedulers, with the scheduler config of the published SDXL",
            "zeros",
            _DIFFUSERS,
            {
                frozenset({"deis", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver", "uni_pc"}): (
                    _DIFFUSERS_MULTISTEP
                ),
                frozenset({"ddim", "ddpm"}): Habits(_DIFFUSERS_MULTISTEP.conventions),
            },
        ),
        "sgm": Program(
            "Stability AI's generative-models",
            "sgm/modules/diffusionmodules/sampling.py and denoiser.py, scripts/demo/discretization.py",
            "zeros",
            Habits(Conventions(batch_noise="one_stream", noise="cuda", strength="levels")),
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
        "strength": {
            "share": "steps x strength, rounded down",
            "truncated": "steps x strength, rounded down with the error of the product",
            "below_one": "steps x strength, rounded down, never all of them",
            "levels": "those of the last (steps + 1) x strength levels",
            "exact": "all steps, of a schedule that is longer by as much",
        },
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
        raise unknown("program", name, PROGRAMS)
    return found


def conventions_of(program: ProgramName | None, sampler: str, schedule: str) -> Conventions:
    """What a program does with a sampler and a schedule of ours; None for this program."""
    if program is None:
        return Conventions()
    habits = PROGRAMS[program].with_sampler(sampler)
    return habits.but(start="sigma").conventions if schedule in habits.sigma_start else habits.conventions


def empty_negative(program: ProgramName | None, kind: str) -> Literal["zeros", "encode"]:
    """What an empty negative prompt becomes: a refiner was not trained with zeros, every other kind of model was."""
    if kind == "refiner":
        return "encode"
    return "zeros" if program is None else PROGRAMS[program].empty_negative
