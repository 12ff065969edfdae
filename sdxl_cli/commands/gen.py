"""`sdxl gen`: pictures from words."""

from sdxl_cli.console import Console
from sdxl_cli.flags import GenFlags, takes

EPILOG = """
[bold]Examples[/bold]
  sdxl gen "a cat"
  sdxl gen "a red apple on a blue background" -n 4 --seed 1
  sdxl gen "a lighthouse at dusk" --preset sdxl-base-1.0 --aspect 16:9
  sdxl gen --prompts list.txt -o 'out/{seed}-{slug}.jpg' --json
  shuf -n 3 list.txt | sdxl gen - --dry-run
"""


@takes(GenFlags)
def gen(flags: GenFlags) -> None:
    """Draw pictures of what PROMPT says and print their paths.

    Without --preset and --model this is SDXL base where its file is found, else the small model in the package.
    """
    from sdxl_cli.jobs import resolve_run
    from sdxl_cli.running import run_or_show

    console = Console(quiet=flags.quiet)
    run_or_show(resolve_run(flags, flags.prompts or [], console), flags, console)
