"""Replies at waypoints read slowly and plainly, with regular expressions and Python's strings.

Nothing here is shared with the array code.
"""

import re

BLANKS = " \t\n\r\u00a0"
OUTER = BLANKS + "\f\v"  # around a value
QUOTED = r"(?:[^\\]|\\.)"


def unescaped(text: str) -> list[tuple[str, bool]]:
    """The characters that a text with JSON escapes means, and whether each stood there bare."""
    found, at = [], 0
    while at < len(text):
        if text[at] != "\\":
            found.append((text[at], True))
            at += 1
            continue
        code = text[at + 2 : at + 6]
        if text[at + 1 : at + 2] == "u" and re.fullmatch("[0-9a-fA-F]{4}", code, re.ASCII):
            found.append((chr(int(code, 16)), False))
            at += 6
        else:
            meant = dict(zip("bfnrt", "\b\f\n\r\t", strict=True))
            found += [(meant.get(letter, letter), False) for letter in text[at + 1 : at + 2]]
            at += 2
    return found


def value(text: str, key: str) -> str | None:
    """The string behind the last `"key":`, or None."""
    letters = unescaped(text)
    # An escaped quote becomes another character, so that plain searches don't see it.
    masks = {'"': "\ue000", "'": "\ue001"}
    plain = "".join(c if bare else masks.get(c, c) for c, bare in letters)
    blank = f"[{BLANKS}]*"
    found = list(re.finditer(rf"""(?=(["']){key}\1{blank}:(.*))""", plain, re.DOTALL))
    before = [plain[: match.start()].rstrip(BLANKS)[-1:] for match in found]
    found = [m for m, b in zip(found, before, strict=True) if not (b.isascii() and b.isalpha())]
    if not found:
        return None
    closed = re.match(rf"""{blank}(["'])(.*?)\1""", found[-1][2], re.DOTALL)
    if not closed:
        return None
    return closed[2].translate({ord(mask): quote for quote, mask in masks.items()})


def observation(text: str) -> tuple[str, bool]:
    """(the landmark's name or "", whether an intersection is claimed)."""
    text, claim = text.strip(OUTER), "you observe an intersection"
    text, *cut = re.split(f"; {claim}", text, maxsplit=1, flags=re.I | re.ASCII)
    ahead = re.match(f"{claim};", text, re.I | re.ASCII)
    text = text[ahead.end() :] if ahead else text
    name, mark, rest = text.rpartition(" is on your ")
    if not mark:
        name = re.split(f";|{claim}", text, maxsplit=1, flags=re.I | re.ASCII)[0]
        rest = text
    claimed = bool(cut or ahead or re.search(claim, rest, re.I | re.ASCII))
    name = name.strip(OUTER)
    if not mark and re.match("no landmark", name, re.I | re.ASCII):
        return "", claimed
    return bare(name), claimed


def bare(name: str) -> str:
    """A name without blanks around it and without what may stand before it, twice at most."""
    for _ in range(2):
        name = re.sub(r"\Athe destination ", "", name.strip(OUTER), flags=re.I | re.ASCII)
    return name.strip(OUTER)


def judged(reply: str, action: str, name: str, intersection: bool) -> dict:
    """Outcome, and what was missed, where this is the expert's action."""
    said = (value(reply, "action") or "").strip(OUTER)
    seen = value(reply, "current observation")
    named, claimed = observation(seen) if seen is not None else ("", False)
    landmark = seen is None or named != bare(name)
    crossing = claimed != intersection
    outcome = "not_detected" if landmark or crossing else "wrong_action"
    return {
        "outcome": "correct" if said == action else outcome,
        "action": said,
        "landmark": landmark,
        "intersection": crossing,
    }
