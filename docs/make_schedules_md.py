"""Writes docs/schedules.md from the table of schedules: `python docs/make_schedules_md.py > docs/schedules.md`."""

import sys

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.schedules import SCHEDULES, resolve_sigmas

STEPS = 10

HEAD = """# The schedules

A schedule says which noise levels a run of n steps walks through. This page is made from the program by
`docs/make_schedules_md.py`; a test compares the two. `sdxl sigmas list` shows the same in a terminal, and
`sdxl sigmas --kind NAME` every number of one list; `sdxl gen --schedule NAME:option=value` walks it.

![Six schedules of 20 steps, and how densely each lies beside the levels of training](schedules.svg)

The picture is `sdxl sigmas --steps 20 --compare
legacy_ddpm,karras,beta,kl_optimal,align_your_steps,gits --svg schedules.svg`. At the left every level on a logarithmic
axis; at the right how many of the steps fall on a unit of log-SNR, beside the levels that training draws (grey).

## Names

One name means one list here. Programs disagree about four of the names; the plain one is ComfyUI's list:

- **beta** places timesteps at quantiles of the beta distribution and rounds them; A1111 and diffusers (`beta_a1111`)
  place sigma itself there, which leaves hardly a level below 1.
- **kl_optimal** ends at 0; A1111's (`kl_optimal_a1111`) is the same curve over one level more and stops at the lowest
  level, so a little noise stays in the picture.
- **align_your_steps** is stretched to n + 1 levels and its last replaced by 0; A1111's (`align_your_steps_a1111`) is
  stretched to n levels before the 0, and so spends a step on the lowest.
- **turbo** takes the first n of 999, 899, ..., 99; Forge's (`turbo_forge`) spreads n timesteps over the whole table.

Every list has exactly the steps that were asked for: where ComfyUI's `ddim_uniform` walks 31 of 30 steps, and its
`beta` fewer than asked because two of them round to one timestep, ours is cut, or refused with a word what to do.
With one step every schedule starts at the highest level of its list.

## Definitions
"""


def document() -> str:
    """The whole page."""
    lines = [HEAD, "| name | what it is | options | source |", "|---|---|---|---|"]
    for row in SCHEDULES.values():
        options = ", ".join(f"`{key}`" + ("" if v in (None, ()) else f" {v:g}") for key, v in row.options.items())
        lines.append(f"| `{row.name}` | {row.summary} | {options} | {row.source} |")
    lines += ["", f"## {STEPS} steps of SDXL", "", "| name | levels |", "|---|---|"]
    for name in SCHEDULES:
        if name != "explicit":
            sigmas = resolve_sigmas(DiscretizationConfig(name=name), STEPS, DenoiserConfig())
            lines.append(f"| `{name}` | {' '.join('0' if sigma == 0 else f'{sigma:.4f}' for sigma in sigmas)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
