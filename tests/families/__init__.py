"""Tiny pipelines of random weights, through diffusers' own classes, one for every model family."""

from .allegro import ALLEGRO, SANA_VIDEO
from .cogvideox import COGVIDEOX, CONSISID
from .cosmos import COSMOS_1
from .family import PROMPT, STEPS, Family
from .hunyuan import HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, KANDINSKY_5
from .latte import LATTE
from .ltx import LTX_2, LTX_VIDEO
from .mochi import EASYANIMATE, MOCHI
from .wan import SKYREELS_V2, WAN_21, WAN_22

FAMILIES = {
    family.name: family
    for family in (
        LATTE,
        COGVIDEOX,
        WAN_21,
        WAN_22,
        HUNYUAN_VIDEO,
        HUNYUAN_VIDEO_15,
        LTX_VIDEO,
        LTX_2,
        MOCHI,
        ALLEGRO,
        EASYANIMATE,
        COSMOS_1,
        SKYREELS_V2,
        SANA_VIDEO,
        KANDINSKY_5,
        CONSISID,
    )
}

__all__ = ["FAMILIES", "PROMPT", "STEPS", "Family"]
