"""Captions: the same picture said in several ways, as people type prompts."""

import random

DEFAULT_BACKGROUND = "white"
_FULL = (
    "{thing} on a {colour} background, {style} style",
    "{thing} on a {colour} background, {style} style",
    "{thing}, {style} style, {colour} background",
    "{style} emoji of {thing} on a {colour} background",
    "{style} emoji of {thing} on {colour}",
    "{thing} in {style} style on a {colour} background",
    "{thing} on {colour}, {style}",
)
_NO_STYLE = (
    "{thing} on a {colour} background",
    "{thing} on a {colour} background",
    "{thing} on {colour}",
    "{thing}, {colour} background",
)
_NO_COLOUR = ("{thing}, {style} style", "{style} emoji of {thing}", "{thing} in {style} style", "{style} {bare}")
_NEITHER = ("{thing}", "{thing}", "{bare}")
_STYLE_NAMED = 0.85
_COLOUR_NAMED_ON_WHITE = 0.5
_NO_ARTICLE = 0.15


def write_caption(rng: random.Random, phrase: str, bare: str, style: str, background: str) -> str:
    """One caption. A background that is not named is white, a style that is not named is any.

    Args:
        rng: Where the choices come from.
        phrase: The thing or things with articles, "a cat" or "a cat and a dog".
        bare: The same without articles.
        style: Style word.
        background: Colour word.
    """
    styled = rng.random() < _STYLE_NAMED
    coloured = background != DEFAULT_BACKGROUND or rng.random() < _COLOUR_NAMED_ON_WHITE
    templates = {(True, True): _FULL, (False, True): _NO_STYLE, (True, False): _NO_COLOUR, (False, False): _NEITHER}
    template = rng.choice(templates[styled, coloured])
    colour = "grey" if background == "gray" and rng.random() < 0.3 else background
    thing = bare if rng.random() < _NO_ARTICLE else phrase
    text = template.format(thing=thing, bare=bare, style=style, colour=colour)
    return _mend_article(text)


def plain_caption(phrase: str, style: str, background: str) -> str:
    """The caption that names everything, in the commonest form."""
    return _mend_article(_FULL[0].format(thing=phrase, colour=background, style=style))


def _mend_article(text: str) -> str:
    return text.replace(" a orange background", " an orange background")
