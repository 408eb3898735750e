"""The page of transcripts: well-formed, self-contained, and safe against what models write."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from gp_virl.envs import general_points, navigation
from gp_virl.plots.results import ResultsError
from gp_virl.plots.transcripts import OUTCOMES, page, read_transcripts, transcript

EVIL = "</pre><script>alert('x')</script> & \"quoted\" \u2028 <b onclick='y'>"


def entry(branch: str = "rl", solved: bool = True, reply: str = "(10-4)*(8-4)=24") -> dict:
    tries = [
        {"role": "user", "content": "Cards: 10 4 8 4"},
        {"role": "assistant", "content": "1+", "outcome": "illegal", "reward": -3.0},
        {"role": "user", "content": "Not a formula."},
    ]
    last = (
        {"outcome": "solved", "reward": 5.0} if solved else {"outcome": "wrong_value", "reward": -2}
    )
    return {
        "branch": branch,
        "split": "rule_ood",
        "seed": 0,
        "hand": ["10", "4", "8", "4"],
        "rule": "face_rank",
        "solved": solved,
        "messages": [*tries, {"role": "assistant", "content": reply, **last}],
    }


class Reader(HTMLParser):
    """Collects tags with attributes and the text of <pre>; fails if tags don't nest."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.pre: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "pre":
            self.pre.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.pre[-1] += data

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_every_message_is_on_the_page_in_order() -> None:
    read = Reader(page([transcript(entry())]))
    assert read.pre == ["Cards: 10 4 8 4", "1+", "Not a formula.", "(10-4)*(8-4)=24"]
    assert [attrs["class"] for attrs in read.named("section")] == [
        "user",
        "assistant o-illegal",
        "user",
        "assistant o-solved",
    ]


def test_text_is_escaped_wherever_it_stands() -> None:
    evil = entry(reply=EVIL) | {"branch": EVIL, "rule": EVIL, "hand": [EVIL]}
    evil["messages"][1]["outcome"] = EVIL
    read = Reader(page([transcript(evil)], title=EVIL))
    assert read.pre[-1] == EVIL
    assert len(read.named("script")) == 1
    assert not any("onclick" in attrs for _, attrs in read.tags)
    assert read.named("article")[0]["data-branch"] == EVIL


def test_menus_offer_what_there_is_and_articles_carry_it() -> None:
    entries = [entry("rl"), entry("sft", solved=False), entry("sft")]
    text = page([transcript(one) for one in entries])
    read = Reader(text)
    articles = read.named("article")
    assert [a["data-branch"] for a in articles] == ["rl", "sft", "sft"]
    assert [a["data-outcome"] for a in articles] == ["solved", "wrong_value", "solved"]
    assert [a["class"] for a in articles] == ["yes", "no", "yes"]
    assert [s["data-filter"] for s in read.named("select")] == ["branch", "split", "outcome"]
    assert [o["value"] for o in read.named("option")] == [
        *("", "rl", "sft"),
        *("", "rule_ood"),
        *("", "solved", "wrong_value"),
    ]
    assert "not solved, 2 replies, -5" in text


def test_the_page_needs_nothing_from_outside() -> None:
    text = page([transcript(entry())])
    assert "http" not in text and "src=" not in text and "@import" not in text
    assert all(f"section.o-{name}{{" in text for name in OUTCOMES)


def png(width: int, height: int, colour: str = "green") -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def images(one: dict) -> list[dict]:
    return Reader(page([transcript(one)])).named("img")


def test_a_picture_stands_in_the_first_user_message() -> None:
    given = entry() | {"image": png(300, 200)}
    text = page([transcript(given)])
    assert text.index("<img") < text.index("Cards: 10 4 8 4") and text.count("<img") == 1
    (shown,) = images(given)
    assert shown["src"] == f"data:image/png;base64,{given['image']}"
    assert shown["alt"] == "cards 10, 4, 8, 4, 300 by 200 pixels"
    assert (shown["width"], shown["height"], "class" in shown) == ("300", "200", False)


def test_a_small_picture_is_magnified_by_a_whole_factor() -> None:
    (shown,) = images(entry() | {"image": png(48, 32)})
    assert (shown["width"], shown["height"], shown["class"]) == ("240", "160", "pixels")
    assert "img.pixels{image-rendering:pixelated}" in page([])


def test_pictures_of_a_list_belong_to_their_messages() -> None:
    first, second = png(8, 8, "red"), png(8, 8, "blue")
    given = entry() | {"image": [first, None, second, None], "hand": []}
    read = transcript(given)
    assert [m.picture is not None for m in read.messages] == [True, False, True, False]
    shown = images(given)
    assert [one["src"].partition(",")[2] for one in shown] == [first, second]
    assert shown[0]["alt"].startswith("what the model sees, 8 by 8")


def test_text_around_a_picture_is_escaped() -> None:
    read = Reader(page([transcript(entry() | {"image": png(4, 4), "hand": [EVIL]})]))
    assert read.named("img")[0]["alt"] == f"cards {EVIL}, 4 by 4 pixels"
    assert not any("onclick" in attrs for _, attrs in read.tags)


def test_a_reply_shows_the_cards_it_sees() -> None:
    given = entry()
    given["messages"][1] |= {"cards": ["10", "<b>"], "recognized": False}
    given["messages"][3] |= {"cards": ["10", "4", "8", "4"], "recognized": True}
    text = page([transcript(given)])
    Reader(text)
    assert text.count("class=seen") == 2
    assert "sees <b class=card>10</b><b class=card>&lt;b&gt;</b> ✗ not recognized" in text
    assert "<b class=card>4</b> ✓ recognized" in text
    assert "class=seen" not in page([transcript(entry())])


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("no base64!", "file, line 3, image of message 0: needs a PNG file in base64"),
        (base64.b64encode(b"GIF89a").decode(), "its bytes don't begin as a PNG's do"),
        (png(4, 4)[:20], "image of message 0: needs a PNG"),
        (7, "image of message 0: needs a PNG"),
        ([png(4, 4)], "1 images for 4 messages"),
        ([None, None, "x", None], "image of message 2"),
    ],
)
def test_a_malformed_picture_is_named(image, named: str) -> None:
    with pytest.raises(ResultsError, match=named):
        transcript(entry() | {"image": image}, "file, line 3")


def test_an_empty_page_is_a_page() -> None:
    assert Reader(page([])).named("article") == []


def test_transcripts_are_read_from_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    path.write_text(json.dumps(entry()) + "\n" + json.dumps(entry("sft")) + "\n")
    assert [one.branch for one in read_transcripts(path)] == ["rl", "sft"]
    assert read_transcripts(path)[0].outcome == "solved"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": "hello"}, "must be lists"),
        ({"messages": [{"role": "user"}]}, "message 0: needs 'role' and 'content'"),
        ({"messages": [{"role": "tool", "content": ""}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": "", "cards": 3}]}, "'cards' must be a list"),
        (
            {"messages": [{"role": "user", "content": "", "recognized": "yes"}]},
            "'recognized' must be true, false or null, not 'yes'",
        ),
    ],
)
def test_a_malformed_transcript_is_named(change: dict, named: str) -> None:
    with pytest.raises(ResultsError, match=named):
        transcript(entry() | change, "file, line 3")
    with pytest.raises(ResultsError, match="missing branch, hand"):
        transcript({"split": "id"})


def test_every_outcome_of_the_environments_has_its_colour() -> None:
    assert {*general_points.OUTCOMES, *navigation.OUTCOMES} == set(OUTCOMES)
