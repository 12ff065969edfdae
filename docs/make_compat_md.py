"""Writes docs/compat.md from the program's own tables: `python docs/make_compat_md.py > docs/compat.md`."""

import sys
from collections.abc import Iterable, Sequence

from sdxl_core.compat import PROGRAMS, WORDS, Conventions, Habits
from sdxl_core.prediction import PREDICTIONS

HEAD = """# Same seed, other picture

Programs give one seed and one prompt different pictures for a few known reasons. This page is made from the program's
own tables by `docs/make_compat_md.py`; a test compares the two. `sdxl gen --compat PROGRAM` (or `compat = "PROGRAM"` in
a recipe) takes over what a program does, `--dry-run` lists every convention of a run beside its default, and the record
of a picture has them all. `sdxl sigmas --compat PROGRAM --sampler NAME` shows the levels that a program makes of a
schedule, and the timestep that it tells the network at each.

## What programs do

"""

MEANINGS = """
## What the words mean

"""

LIMITS = """
## What stays different

- The noise of steps: ancestral samplers here go on with the generator that drew the start, and SDE samplers draw from a
  Brownian path of each picture. ComfyUI seeds the noise of steps anew on the device that samples, A1111's and
  ComfyUI's SDE samplers use another Brownian tree.
- CUDA's noise is that of GPUs that draw a whole latent in one wave of threads; where a GPU needs several, its later
  numbers are others.
- diffusers draws from the generator that its user gives; here it is one on the CPU. Its DDIM steps to timestep
  t - 1000 // n, which is not its next trailing timestep where n does not divide 1000.
- A1111 zeroes an empty negative prompt when the prompt is empty too; here `a1111` always encodes it.
- Emphasis in prompts, rounding in half precision and attention kernels are no part of this.

## What a model predicts

A checkpoint says so itself, or `--prediction NAME` (and `--shift`, for flows) does; a recipe has the same keys.
`sdxl inspect FILE` says what a file's markers mean.

"""

MARKED = """
- `v_pred` among a file's keys, or `modelspec.prediction_type` in its metadata, means v; `ztsnr` beside it `v_ztsnr`.
- `edm_mean` and `edm_std` mean edm, and that latents are 0.5 (encoding - mean) / std. `edm_vpred.sigma_min` and
  `edm_vpred.sigma_max` mean edm_v over that range. Without a preset such a file gets the recipe `sdxl-edm`.
- Nothing marks a flow. A file's name that speaks of one, or of v, is told as a hint.
- Latents are walked as x = x0 + sigma eps whatever is predicted. A flow's x_t = (1 - t) x0 + t eps is that times 1 - t
  with sigma = t / (1 - t), and a shift of its time is a factor of sigma. At the line's end, t = 1, sigma would be
  infinite: a walk starts at t = 0.9999 before the shift.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def habits() -> Iterable[tuple[str, Habits, str]]:
    """Every row of the first table: whose, the habits, and what an empty negative prompt becomes."""
    yield "this program", Habits(Conventions()), "zeros"
    for name, program in PROGRAMS.items():
        yield name, program.habits, program.empty_negative
        for samplers, others in program.others.items():
            yield f"{name} with {', '.join(sorted(samplers))}", others, program.empty_negative


def row(name: str, one: Habits, negative: str) -> list[str]:
    """One row of the first table."""
    values = [str(value).lower() for value in one.conventions.model_dump().values()]
    start = values[0] + "".join(f"; sigma with {schedule}" for schedule in sorted(one.sigma_start))
    schedules = [f"{ours} is {theirs}" for ours, theirs in one.schedules.items()]
    if one.ends_of is not None:
        schedules.append(f"karras, exponential and beta between the ends of {one.ends_of}")
    return [name, start, *values[1:], negative, "; ".join(schedules)]


def document() -> str:
    """The whole page."""
    head = ["program", *Conventions.model_fields, "empty_negative", "schedules"]
    meanings = ((name, str(value).lower(), text) for name, words in WORDS.items() for value, text in words.items())
    predictions = ((f"`{name}`", kind.title) for name, kind in PREDICTIONS.items())
    return (
        f"{HEAD}{table(head, (row(*one) for one in habits()))}{MEANINGS}"
        f"{table(('convention', 'value', 'meaning'), meanings)}{LIMITS}"
        f"{table(('name', 'what the network predicts'), predictions)}{MARKED}"
    )


if __name__ == "__main__":
    sys.stdout.write(document())
