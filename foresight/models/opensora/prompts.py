"""Prompts as the text encoder expects them: plain lower-case prose, and what is asked of its looks.

The rules follow the kind of cleaning that captions of web images get (DeepFloyd IF, PixArt); they
are this project's own and may treat rare marks differently from the released pipeline.
"""

import html
import re

_LINK = re.compile(r"\b(?:https?://|www\.)\S+")
_TAG = re.compile(r"</?[a-z][^<>]*>")
_HANDLE_OR_NUMBER = re.compile(r"(?<!\w)(?:@\w+|#\d+)\b")
# Quotation marks, apostrophes and dashes by their code points.
_PLAIN = {
    **dict.fromkeys((0x201C, 0x201D, 0x201E, 0xAB, 0xBB, 0x2033), '"'),
    **dict.fromkeys((0x2018, 0x2019, 0x201A, 0x60, 0xB4, 0x2032), "'"),
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-"),
    ord("_"): " ",
}


def clean_prompt(text: str) -> str:
    """Lower-case text without HTML, links, handles, typographic marks or superfluous space."""
    text = html.unescape(html.unescape(text)).lower()  # twice: captions are often escaped twice
    for unwanted in (_TAG, _LINK, _HANDLE_OR_NUMBER):
        text = unwanted.sub(" ", text)
    return " ".join(text.translate(_PLAIN).split())


def with_aesthetic_score(prompt: str, score: float | None) -> str:
    """The prompt with the score, about 4 to 7, that captions of such looks had in training."""
    return prompt if score is None else f"{prompt} aesthetic score: {score:.1f}."
