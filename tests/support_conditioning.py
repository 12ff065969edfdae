"""Prompts that have broken tokenizers, and weights that leave no parameter at a value that hides a mistake."""

import torch
from hypothesis import strategies as st
from torch import nn

PROMPTS = [
    "a cat",
    "",
    "   ",
    "\r\n\t a \t b\u00a0c\u3000d\x85e",
    "A photo of a CAT, 35mm, f/1.8 -- 8k!!!",
    "it's I'm you've they're we'll he'd 'S 'RE s'",
    "'s'S''s \"'t\" a'b",
    "it'\u017f \u212a \u0130stanbul",  # long s, kelvin sign, dotted capital I: their lower case is special
    "ΑΣ ΣΑΣ Σ",
    "1234567890 ½ Ⅷ ٣ ²",
    "naïve café e\u0301 cafe\u0301 ﬁ",
    "👩\u200d👩\u200d👧 🇩🇪 🦊🦊 ❤\ufe0f",
    "日本語のテキスト 한국어 العربية हिन्दी",
    "a\u200bb\ufeffc \x00 \x01 \x1c\x1d\x1e\x1f \x7f \x9f",
    "\x1b[31mred\x1b[0m",
    "&amp; &amp;amp; &lt;b&gt; &EACUTE; &eacute &#x1F600; &notanentity; AT&T",
    "<b>bold</b> <lora:x:0.5> (cat:1.2) [red|blue] {a}",
    "<|startoftext|> x <|endoftext|>",
    "<|EndOfText|>! !<|STARTOFTEXT|>!",
    "a<|endoftext|>b<|startoftext",
    "<start_of_text>a<end_of_text>!<start_of_text> <START_OF_TEXT> <\u017ftart_of_text>",
    "âœ” schÃ¶n â€œquotedâ€\x9d",
    "“curly” ‘quotes’ … – —",
    "x" * 300,
    "antidisestablishmentarianism" * 20,
    "abab" * 50 + "!?" * 50 + "🦊" * 30,
    "\U0001f98a\U00020000\U000e0041",
]

_letters = st.characters(exclude_categories=("Cs", "Cn"))  # references differ in which Unicode version they know
_entities = ["&amp;", "&#39;", "&", ";", "<", "|>", "<|endoftext|>", "<start_of_text>"]
_fragments = st.sampled_from([*_entities, "'s", "'LL", " ", "\n", "\x00", "Σ", "é", "🦊"])
_words = st.from_regex(r"[a-zA-Z]{1,30}", fullmatch=True)
any_prompt = st.lists(st.one_of(st.text(_letters, max_size=12), _fragments, _words)).map("".join)


def randomize(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Give every parameter, norms and biases too, random values; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0
            parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))
    return module
