import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gp_virl.data import llava_json
from gp_virl.data.llava_json import LlavaError, read
from gp_virl.data.pictures import decoded, encoded
from gp_virl.data.pipeline import batches, tokenized
from gp_virl.text import template
from gp_virl.text.template import IMAGE, encode, render
from gp_virl.text.tokenizer import tiny

TINY = tiny()
DRAW = np.random.default_rng(0)
PICTURES = [DRAW.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]


def entry(*texts: Any, **more: Any) -> dict[str, Any]:
    turns = [
        {"from": role, "value": text}
        for role, text in zip(itertools.cycle(("human", "gpt")), texts, strict=False)
    ]
    return {"conversations": turns, **more}


def written(folder: Path, data: Any) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A file of three entries with pictures, one of them a JPEG."""
    (tmp_path / "views").mkdir()
    names = ["views/0.png", "views/1.jpg", "2.png"]
    for name, picture in zip(names, PICTURES, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    data = [
        entry("<image>\nWhere?", "north", "<image>\nand now?", "south", image=names[0]),
        entry("  <image>\n<image>Where?", "east", image=[names[1]], id=7),
        entry("Where?\n", " west\n", image=names[2]),
    ]
    return written(tmp_path, data)


def test_every_reply_is_trained(tmp_path: Path) -> None:
    data = [entry("2 + 3?", "5", "and 1?", "6", "Café \U0001f5fa?", "7"), entry("hi", "ho")]
    source = read(written(tmp_path, data))
    assert len(source) == 2 and dict(source[1]) == {"contents": ("hi", "ho"), "trained": "all"}
    talks = tokenized(source, TINY)
    for item, given in zip(talks, data, strict=True):
        texts = [turn["value"] for turn in given["conversations"]]
        whole = render(TINY, template.chat(texts), False)
        assert item["tokens"].tolist() == encode(TINY, [whole])[0]
        said = TINY.decode(item["tokens"][item["replied"]])
        assert said == "".join(text + "<|eot_id|>" for text in texts[1::2])
        last = tokenized([{"contents": texts}], TINY)[0]
        assert (last["tokens"] == item["tokens"]).all()
        assert TINY.decode(last["tokens"][last["replied"]]) == texts[-1] + "<|eot_id|>"
    row = next(iter(batches(talks, length=200, batch_size=1, seed=0)))
    assert row["replied"].sum() >= sum(item["replied"].sum() for item in talks)


def test_placeholders_become_one_image_token_at_the_start(pictured: Path) -> None:
    assert [item["contents"] for item in read(pictured)] == [
        (f"{IMAGE}Where?", "north", "and now?", "south"),
        (f"{IMAGE}Where?", "east"),
        (f"{IMAGE}Where?", "west"),
    ]


def test_pictures_travel_with_their_conversation(pictured: Path) -> None:
    talks = tokenized(read(pictured), TINY)
    shown = [decoded((pictured.parent / f).read_bytes()) for f in ("views/0.png", "views/1.jpg")]
    assert (shown[0] == PICTURES[0]).all() and (shown[1] != PICTURES[1]).any()
    seen = set()
    for batch in itertools.islice(batches(talks, length=80, batch_size=1, seed=0), 6):
        assert batch["images"].shape == (1, 1, 8, 8, 3)
        tokens = batch["tokens"][0][batch["segments"][0] == 1].tolist()
        (number,) = [i for i, item in enumerate(talks) if item["tokens"].tolist() == tokens]
        wanted = shown[number] if number < 2 else PICTURES[2]
        assert (batch["images"][0, 0] == wanted).all()
        seen.add(number)
    assert seen == {0, 1, 2}


def test_pictures_are_read_when_they_are_needed(
    pictured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, plain = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or plain(path))
    source = read(pictured)
    assert not opened
    assert source[2]["image"] == (pictured.parent / "2.png").open("rb").read()
    assert opened == ["2.png"] and "image" in dict(source[0])
    opened.clear()
    tokenized(source, TINY)
    assert opened == ["0.png"]  # whether there are pictures at all


def test_the_folder_of_pictures_can_be_another(pictured: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = written(elsewhere, [entry("<image>a", "b", image="2.png")])
    with pytest.raises(LlavaError, match=r"entry 0: image: given '2.png'.*give the folder"):
        read(file)
    assert decoded(read(file, images=tmp_path)[0]["image"]).shape == (8, 8, 3)


def test_unreadable_pictures_name_their_example(pictured: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(stream, "BMP")
    cut = encoded(PICTURES[0])[:-40]
    for name, number, file in (("0.png", 0, b"no picture"), ("1.jpg", 1, stream.getvalue()),
                               ("1.jpg", 1, cut)):  # fmt: skip
        path = pictured.parent / "views" / name
        kept = path.read_bytes()
        path.write_bytes(file)
        talks = tokenized(read(pictured), TINY)
        with pytest.raises(ValueError, match=f"example {number}: its picture can't be read"):
            list(itertools.islice(batches(talks, length=80, batch_size=1, seed=0), 9))
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("hi", "entry 1: given str, allowed: an object"),
        ({}, "entry 1: conversations: given NoneType, allowed: a list of turns"),
        (entry(), "entry 1: conversations: given an empty list"),
        (entry("a", "b", "c"), "entry 1: conversations: given 3 turns, allowed: pairs"),
        ({"conversations": ["a", "b"]}, r"entry 1: conversations\[0\]: given str"),
        (entry("a", 5), r"entry 1: conversations\[1\].value: given int, allowed: a text"),
        (entry("a", " \n"), r"entry 1: conversations\[1\].value: given no text"),
        (entry("<image>\n", "b"), r"entry 1: conversations\[0\].value: given no text"),
        (entry("<image>a", "b"), r"conversations\[0\].value: given <image>, but the entry has no"),
        (entry("a <image>", "b"), "given <image> within the text, allowed: at its start"),
        (entry("a", "b<|eot_id|>"), r"conversations\[1\].value: given <\|eot_id\|>"),
        (entry(IMAGE + "a", "b"), r"conversations\[0\].value: given <\|image\|>"),
        (entry("a", "b\ud800"), r"conversations\[1\].value: given half of a surrogate pair"),
        (entry("a", "b", image=["a.png", "b.png"]), "image: given 2 paths, allowed: one picture"),
        (entry("a", "b", image=5), "image: given 5, allowed: a path inside"),
        (entry("a", "b", image="../a.png"), "image: given '../a.png', allowed: a path inside"),
        (entry("a", "b", image="/etc/hosts"), "image: given '/etc/hosts', allowed: a path inside"),
        (entry("a", "b", image="a\0.png"), "is no file; give the folder"),
        (entry("a", "b", image="a" * 5000), "is no file; give the folder"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(LlavaError, match=message) as found:
        read(written(tmp_path, [entry("a", "b"), item]))
    assert str(found.value).startswith(f"{tmp_path / 'data.json'}: no conversation was read")


def test_roles_take_turns(tmp_path: Path) -> None:
    turns = [{"from": "gpt", "value": "a"}, {"from": "system", "value": "b"}]
    with pytest.raises(LlavaError) as found:
        read(written(tmp_path, [{"conversations": turns}]))
    assert found.value.problems == (
        "entry 0: conversations[0].from: given 'gpt', allowed here: 'human'",
        "entry 0: conversations[1].from: given 'system', allowed here: 'gpt'",
    )


def test_all_that_is_wrong_is_collected(tmp_path: Path) -> None:
    data = [entry("a", "b"), 5, entry("a", ""), entry("a")] + [7] * 30
    with pytest.raises(LlavaError) as found:
        read(written(tmp_path, data))
    numbers = [problem.split(":")[0] for problem in found.value.problems]
    assert numbers == [f"entry {i}" for i in range(1, 34)]
    lines = str(found.value).splitlines()
    assert len(lines) == 1 + llava_json.SHOWN + 1 and lines[-1].endswith("... and 13 more")


def test_pictures_are_in_all_entries_or_in_none(pictured: Path) -> None:
    data = [*json.loads(pictured.read_text()), entry("a", "b"), entry("a", "b", image=[])]
    with pytest.raises(LlavaError) as found:
        read(written(pictured.parent, data))
    told = "image: given none, allowed: one in every entry, or in no entry"
    assert found.value.problems == (f"entry 3: {told}", f"entry 4: {told}")
    bare = [entry("a", "b", image=nothing) for nothing in (None, [], "")]
    assert all("image" not in item for item in read(written(pictured.parent, bare)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("{}", "given dict"), ("[]", "an empty list"), ("[" * 10**5, "not JSON")],
)
def test_a_file_that_is_no_list_of_entries_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "data.json"
    with pytest.raises(LlavaError, match="give the path of a JSON file"):
        read(path)
    path.write_text(text)
    with pytest.raises(LlavaError, match=message):
        read(path)


def test_an_unknown_choice_of_replies_is_refused() -> None:
    with pytest.raises(ValueError, match="example 1: trained: given 'some', allowed: last, all"):
        tokenized([{"contents": ["a", "b"], "trained": c} for c in ("last", "some")], TINY)
