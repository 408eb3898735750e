"""The tiny tokenizer of navigation: as `tokenizer.tiny`, made for what is said on a route.

Each stretch of `brief` boilerplate, each direction and each side is one token, and so is each of
the words given that names of landmarks are made of.
"""

import re
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from gp_virl.text.route_prompts import BRIEF, FULL, SLOTS
from gp_virl.text.tokenizer import ROLES, trained

TINY_ROUTES = "tiny_routes"
MERGED = 320  # entries before the whole phrases: special tokens, bytes, and some merges
DIRECTIONS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
DIRECTIONS += ("left", "right", "slightly left", "slightly right")
SIDES = ("front", "right front", "right", "right behind", "behind", "left behind", "left")
SIDES += ("left front",)
ACTIONS = ("forward()", "stop()", "turn_direction(", ")")


def tiny_routes(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The navigation tokenizer, the same one for the same words.

    `words` are parts of names with the blank before them ("Harbor", " Tea House"); each becomes
    one token. Other names are spelled in more tokens.
    """
    phrases = _phrases(words)
    return trained(_pattern(phrases), _texts(), MERGED, phrases)


def _phrases(words: Sequence[str]) -> list[str]:
    """Texts that are one token each, the longest first."""
    known = {"\n", "\n\n", *BRIEF.text_literals(), *ROLES, *ACTIONS, *DIRECTIONS, *words}
    known |= {f" {side}" for side in SIDES}
    return sorted(known, key=lambda text: (-len(text), text))


def _pattern(phrases: Sequence[str]) -> str:
    """What the pre-tokenizer isolates, in order of preference; the rest stays in runs."""
    ends = [re.escape(text) + r"(?!\p{L})" * text[-1].isalpha() for text in phrases]
    return "|".join([*ends, r"\d", r" ?\p{L}+", r"[-+*/()=.,:;>&']"])


def _texts() -> Iterator[str]:
    """The corpus of the merges: both wordings."""
    for wording in (BRIEF, FULL):
        yield from (getattr(wording, name) for name in SLOTS)
