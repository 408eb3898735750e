"""An HTML page of conversations, for eyes: prompt, pictures, replies, feedback and rewards.

The page is one file without any outside resource; a few lines of script filter what is shown.
"""

import base64
import binascii
import dataclasses
import html
import struct
from collections.abc import Sequence
from typing import Any

from gp_virl.places import Place, place
from gp_virl.plots.results import ResultsError, json_lines

ROLES = ("system", "user", "assistant")
# Outcomes of each environment in the order of their reward, and how a reply of each is coloured.
OUTCOMES = {
    "solved": "#1b7f4d",
    "wrong_value": "#b7791f",
    "unrecognized": "#6b46c1",
    "wrong_numbers": "#c05621",
    "illegal": "#b83232",
    "correct": "#1b7f4d",
    "wrong_action": "#c05621",
    "not_detected": "#6b46c1",
}
FILTERS = ("branch", "split", "outcome")
PNG = b"\x89PNG\r\n\x1a\n"
SHOWN = 240  # pixels of the page that a small picture is magnified to, by whole factors


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file and its size in pixels."""

    png: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Message:
    """One message; `outcome` to `recognized` are of a reply, and None for the other roles."""

    role: str
    content: str
    outcome: str | None = None
    reward: float | None = None
    cards: tuple[str, ...] | None = None  # that the reply says it sees
    recognized: bool | None = None  # whether these are the hand's
    picture: Picture | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One conversation from the prompt to its end."""

    branch: str
    split: str
    seed: int
    hand: tuple[str, ...]  # card symbols, as the prompt shows them
    rule: str
    solved: bool
    messages: tuple[Message, ...]

    @property
    def outcome(self) -> str:
        """The outcome of the last reply."""
        return next((m.outcome for m in reversed(self.messages) if m.outcome), "none")


def transcript(entry: dict[str, Any], where: str = "transcript") -> Transcript:
    """The Transcript of a JSON object. Raises ResultsError that names what is wrong.

    `image` may be there as the base64 text of a PNG that the first user message shows, or as a
    list with one such text or null for each message.
    """
    wanted = {field.name for field in dataclasses.fields(Transcript)}
    missing = sorted(wanted - set(entry))
    if missing:
        raise ResultsError(f"{where}: missing {', '.join(missing)}")
    if not isinstance(entry["messages"], list) or not isinstance(entry["hand"], list):
        raise ResultsError(f"{where}: 'messages' and 'hand' must be lists")
    messages = [_message(one, where, i) for i, one in enumerate(entry["messages"])]
    for i, text in enumerate(_images(entry.get("image"), messages, where)):
        if text is not None:
            seen = picture(text, f"{where}, image of message {i}")
            messages[i] = dataclasses.replace(messages[i], picture=seen)
    hand = tuple(str(card) for card in entry["hand"])
    plain = {name: entry[name] for name in ("branch", "split", "seed", "rule", "solved")}
    return Transcript(hand=hand, messages=tuple(messages), **plain)


def picture(text: Any, where: str = "image") -> Picture:
    """The Picture of base64 text. Raises ResultsError unless it is a PNG file's."""
    try:
        png = base64.b64decode(text, validate=True)
        if not png.startswith(PNG) or png[12:16] != b"IHDR":
            raise ValueError("its bytes don't begin as a PNG's do")
        return Picture(png, *struct.unpack(">II", png[16:24]))
    except (TypeError, ValueError, binascii.Error, struct.error) as wrong:
        raise ResultsError(f"{where}: needs a PNG file in base64: {wrong}") from wrong


def read_transcripts(path: str | Place) -> list[Transcript]:
    """The transcripts of a JSONL file. Raises ResultsError if it is missing or malformed."""
    return [transcript(entry, where) for where, entry in json_lines(place(path))]


def page(transcripts: Sequence[Transcript], title: str = "Transcripts") -> str:
    """The HTML page of `transcripts`, in their order. All their text is escaped."""
    bars = "".join(_menu(name, transcripts) for name in FILTERS)
    cards = "".join(_conversation(one) for one in transcripts)
    colours = "".join(f"section.o-{name}{{--c:{colour}}}" for name, colour in OUTCOMES.items())
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}{colours}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1><div class=bar>{bars}"
        f"<output id=count>{len(transcripts)} of {len(transcripts)}</output></div></header>"
        f"<main>{cards}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _message(entry: Any, where: str, number: int) -> Message:
    if not isinstance(entry, dict) or not {"role", "content"} <= set(entry):
        raise ResultsError(f"{where}, message {number}: needs 'role' and 'content'")
    if entry["role"] not in ROLES:
        raise ResultsError(
            f"{where}, message {number}: role must be one of {', '.join(ROLES)}, "
            f"not {entry['role']!r}"
        )
    cards = entry.get("cards")
    if cards is not None and not isinstance(cards, list):
        raise ResultsError(f"{where}, message {number}: 'cards' must be a list, not {cards!r}")
    recognized = entry.get("recognized")
    if recognized is not None and not isinstance(recognized, bool):
        raise ResultsError(
            f"{where}, message {number}: 'recognized' must be true, false or null, "
            f"not {recognized!r}"
        )
    return Message(
        role=entry["role"],
        content=entry["content"],
        outcome=entry.get("outcome"),
        reward=entry.get("reward"),
        cards=None if cards is None else tuple(map(str, cards)),
        recognized=recognized,
    )


def _images(given: Any, messages: Sequence[Message], where: str) -> Sequence[Any]:
    """One entry a message, None where it shows nothing."""
    if isinstance(given, list):
        if len(given) != len(messages):
            raise ResultsError(f"{where}: {len(given)} images for {len(messages)} messages")
        return given
    first = next((i for i, one in enumerate(messages) if one.role == "user"), 0)
    return [given if i == first else None for i in range(len(messages))]


def _menu(name: str, transcripts: Sequence[Transcript]) -> str:
    """A drop-down list of the values of one property, with their counts."""
    values = [str(getattr(one, name)) for one in transcripts]
    shown = [(html.escape(value), values.count(value)) for value in sorted(set(values))]
    options = "".join(f"<option value='{text}'>{text} ({count})</option>" for text, count in shown)
    return (
        f"<label>{name} <select data-filter={name}><option value=''>all ({len(values)})</option>"
        f"{options}</select></label>"
    )


def _conversation(one: Transcript) -> str:
    tags = "".join(f" data-{name}='{html.escape(str(getattr(one, name)))}'" for name in FILTERS)
    replies = sum(message.role == "assistant" for message in one.messages)
    total = sum(message.reward or 0.0 for message in one.messages)
    verdict = "solved" if one.solved else "not solved"
    facts = f"{one.branch} · {one.split} · {one.rule} · seed {one.seed}"
    tries = f"{verdict}, {replies} {'reply' if replies == 1 else 'replies'}, {total:+g}"
    cards = _cards(one.hand)
    body = "".join(_bubble(message, one.hand) for message in one.messages)
    return (
        f"<article class='{'yes' if one.solved else 'no'}'{tags}><h2>{cards}"
        f"<span>{html.escape(facts)}</span><em>{html.escape(tries)}</em></h2>{body}</article>"
    )


def _cards(symbols: Sequence[str]) -> str:
    return "".join(f"<b class=card>{html.escape(card)}</b>" for card in symbols)


def _bubble(message: Message, hand: Sequence[str]) -> str:
    """One message; a reply carries its outcome's colour, its name, its reward and what it saw."""
    badge, colour = "", ""
    if message.outcome is not None:
        reward = "" if message.reward is None else f" {message.reward:+g}"
        badge = f"<span class=badge>{html.escape(message.outcome + reward)}</span>"
        # An unknown outcome keeps the neutral colour; only known names become class names.
        colour = f" o-{message.outcome}" if message.outcome in OUTCOMES else ""
    return (
        f"<section class='{message.role}{colour}'><h3>{message.role}{badge}{_seen(message)}</h3>"
        f"{_image(message.picture, hand)}<pre>{html.escape(message.content)}</pre></section>"
    )


def _seen(message: Message) -> str:
    """The cards a reply names, and whether they are right."""
    if message.cards is None and message.recognized is None:
        return ""
    verdict = {True: "✓ recognized", False: "✗ not recognized", None: ""}[message.recognized]
    return f"<span class=seen>sees {_cards(message.cards or ())} {verdict}</span>"


def _image(seen: Picture | None, hand: Sequence[str]) -> str:
    """An inline picture; a small one is magnified by a whole factor, pixel by pixel."""
    if seen is None:
        return ""
    factor = max(1, SHOWN // max(seen.width, seen.height, 1))
    width, height = factor * seen.width, factor * seen.height
    text = f"cards {', '.join(hand)}" if hand else "what the model sees"
    small = " class=pixels" if factor > 1 else ""
    data = base64.b64encode(seen.png).decode()
    return (
        f"<img{small} alt='{html.escape(text)}, {seen.width} by {seen.height} pixels' "
        f"width={width} height={height} src='data:image/png;base64,{data}'>"
    )


STYLE = """
:root{--ink:#1f2328;--soft:#656d76;--line:#d8dee4;--back:#f6f8fa;--paper:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;
--back:#0d1117;--paper:#161b22}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
header{position:sticky;top:0;background:var(--paper);border-bottom:1px solid var(--line);
padding:10px 20px;z-index:1}
h1{font-size:17px;margin:0 0 6px}
.bar{display:flex;flex-wrap:wrap;gap:16px;align-items:center;color:var(--soft)}
select{font:inherit;color:var(--ink);background:var(--paper);border:1px solid var(--line);
border-radius:5px;padding:2px 6px}
main{max-width:880px;margin:16px auto;padding:0 14px}
article{background:var(--paper);border:1px solid var(--line);border-left:5px solid #b83232;
border-radius:7px;margin:0 0 16px;padding:10px 14px}
article.yes{border-left-color:#1b7f4d}
article[hidden]{display:none}
h2{display:flex;flex-wrap:wrap;gap:6px;align-items:center;font-size:13px;font-weight:400;
margin:0 0 8px;color:var(--soft)}
h2 em{margin-left:auto;font-style:normal;font-weight:600;color:#b83232}
.yes h2 em{color:#1b7f4d}
.card{border:1px solid var(--line);border-radius:4px;padding:1px 7px;color:var(--ink)}
section{border-radius:6px;padding:6px 10px;margin:6px 0;background:var(--back)}
h3{display:flex;gap:8px;align-items:center;font-size:11px;font-weight:600;color:var(--soft);
text-transform:uppercase;letter-spacing:.04em;margin:0 0 2px}
section.assistant{--c:#656d76;margin-left:40px;background:transparent;
border:1px solid var(--c);border-left-width:4px}
.badge{background:var(--c,#656d76);color:#fff;border-radius:9px;padding:0 8px;
text-transform:none;letter-spacing:0}
.seen{display:flex;gap:4px;align-items:center;margin-left:auto;text-transform:none;
letter-spacing:0}
img{display:block;max-width:min(100%,420px);height:auto;margin:4px 0 6px;border-radius:4px}
img.pixels{image-rendering:pixelated}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.4 ui-monospace,monospace}
"""

SCRIPT = """
const menus=[...document.querySelectorAll('select')];
const all=[...document.querySelectorAll('article')];
function show(){
  let shown=0;
  for(const one of all){
    one.hidden=!menus.every(m=>!m.value||one.dataset[m.dataset.filter]===m.value);
    shown+=!one.hidden;
  }
  document.getElementById('count').value=shown+' of '+all.length;
}
menus.forEach(m=>m.addEventListener('change',show));
show();
"""
