"""The page of transcripts: well-formed, self-contained, and safe against what models write."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

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

    VOID = ("meta",)

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
    ],
)
def test_a_malformed_transcript_is_named(change: dict, named: str) -> None:
    with pytest.raises(ResultsError, match=named):
        transcript(entry() | change, "file, line 3")
    with pytest.raises(ResultsError, match="missing branch, hand"):
        transcript({"split": "id"})
