"""`sdxl img2img`: pictures from pictures."""

from sdxl_cli.console import Console
from sdxl_cli.flags import takes
from sdxl_cli.picture_flags import Img2ImgFlags

EPILOG = """
[bold]Examples[/bold]
  sdxl img2img photo.png "a cat" --strength 0.6
  sdxl img2img 'in/*.jpg' "a watercolour" --aspect input -o 'out/{source}.png'
  sdxl img2img room.png "a red sofa" --mask sofa.png --only-masked
  sdxl img2img wide.png "a beach" --pad 0,0,512,0
  sdxl img2img outputs/00001-7-a-cat.png --strength 0.3
"""


@takes(Img2ImgFlags)
def img2img(flags: Img2ImgFlags) -> None:
    """Draw pictures that start from PICTURE and show what PROMPT says; print their paths.

    Without --size they have the picture's own size, to the nearest multiple of 8; --aspect input takes the nearest that
    the model was trained on. With --mask or --pad a part is painted and all else stays to
    the byte, unless the whole has to be resized: sides become multiples of 8.
    """
    from sdxl_cli.jobs import resolve_run
    from sdxl_cli.pictures import gather_pictures
    from sdxl_cli.running import run_or_show

    console = Console(quiet=flags.quiet)
    pictures = gather_pictures(flags)
    run_or_show(resolve_run(flags, pictures.prompts, console, pictures), flags, console)
