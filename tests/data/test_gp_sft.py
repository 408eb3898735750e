import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gp_virl.data import gp_sft
from gp_virl.data.gp_sft import FORMAT, GpSft, GpSftConfig
from gp_virl.data.pictures import decoded, of_hands
from gp_virl.envs import cards, formulas
from gp_virl.text.prompts import BRIEF

ROOT = Path(__file__).parent.parent.parent
BOTH = {
    "rules": {"face_ten": 0.75, "face_rank": 0.25},
    "require_face": ("face_rank",),
    "suboptimal": 0.5,
    "max_errors": 3,
    "examples": 2000,
    "held_out": 0.2,
}
CONFIG = GpSftConfig(**BOTH)
SEEN = {"modality": "image", "image_size": 48, "jitter_shift": 0.1, "jitter_scale": 0.1}
FACES = ("jack", "queen", "king")


@pytest.fixture(scope="module")
def made() -> list[dict]:
    return list(gp_sft.dialogues(CONFIG))


def comparable(examples: list[dict]) -> list[tuple]:
    return [
        (e["contents"], e["rule"], e["ranks"].tolist(), e["held_out"], e["errors"])
        for e in examples
    ]


def plain_verdict(formula: str, values: list[int], target: int) -> tuple[str, list, list, int]:
    """(outcome, foreign, unused, value), with Python's own parser on exact fractions."""
    tokens = gp_sft.re.findall(r"\d+|.", formula)
    exact = "".join(f"Fraction({t})" if t.isdigit() else t for t in tokens)
    no_unary = all(
        not (t in "+-" and (i == 0 or tokens[i - 1] in "(+-*/")) for i, t in enumerate(tokens)
    )
    try:
        value = eval(exact, {"Fraction": Fraction}) if no_unary and "**" not in formula else None
    except ZeroDivisionError:
        value = Fraction(1, 2)  # no integer
    except (SyntaxError, NameError, TypeError):
        value = None
    if value is None or "//" in formula or not isinstance(value, Fraction):
        return "illegal", [], [], -1
    numbers = [int(t) for t in tokens if t.isdigit()]
    left, foreign = list(values), []
    for number in numbers:
        left.remove(number) if number in left else foreign.append(number)
    if foreign or left:
        return "wrong_numbers", foreign[:8], left, -1
    named = int(value) if value.denominator == 1 and 0 <= value <= 999 else -1
    return ("solved", [], [], -1) if value == target else ("wrong_value", [], [], named)


def test_the_last_reply_is_right_and_in_the_experts_form(made: list[dict]) -> None:
    for example in made:
        rule = cards.face_rule(example["rule"])
        reply = json.loads(example["contents"][-1])
        assert reply["cards"] == [cards.SYMBOLS[rank] for rank in example["ranks"]]
        assert reply["number"] == [rule.values[rank] for rank in example["ranks"]]
        formula, claimed = reply["formula"].split("=")
        assert claimed == "24"
        assert plain_verdict(formula, reply["number"], 24)[0] == "solved"
        assert " ".join(reply["cards"]) + f" with J={rule.jack}," in example["contents"][0]


def test_failed_tries_get_the_verifiers_feedback(made: list[dict]) -> None:
    seen = Counter()
    for example in made:
        tries = example["contents"][1:-1]
        assert len(tries) == 2 * example["errors"] <= 6
        texts = gp_sft.CardTexts(gp_sft.load_wording("brief"), cards.face_rule(example["rule"]), 24)
        for reply, feedback in zip(tries[::2], tries[1::2], strict=True):
            said = json.loads(reply)
            outcome, foreign, unused, value = plain_verdict(
                said["formula"].split("=")[0], said["number"], 24
            )
            assert outcome != "solved"
            assert feedback == texts.feedback_text(outcome, foreign, unused, value), reply
            seen[feedback.split(":")[0]] += 1
    assert min(seen[name] for name in ("Value", "Foreign", "Unused", "Illegal")) > 50


def test_shares_of_rules_errors_and_hands(made: list[dict]) -> None:
    rules = Counter(example["rule"] for example in made)
    assert abs(rules["face_rank"] / 2000 - 0.25) < 0.04
    assert 0.4 < np.mean([example["errors"] > 0 for example in made]) < 0.53
    held_out = cards.held_out_multisets(0.2, 0)
    for example in made:
        assert not example["held_out"] and not held_out[cards.multiset_index(example["ranks"])]
        assert example["rule"] == "face_ten" or (example["ranks"] >= cards.JACK).any()
    orders = {tuple(np.argsort(example["ranks"])) for example in made}
    assert len(orders) == 24


def test_held_out_hands_are_the_other_ones() -> None:
    config = GpSftConfig(hands="held_out", held_out=0.2, examples=100)
    held_out = cards.held_out_multisets(0.2, 0)
    for example in gp_sft.dialogues(config):
        assert example["held_out"] and held_out[cards.multiset_index(example["ranks"])]


def test_max_solutions_limits_the_formulas_of_a_hand() -> None:
    table = formulas.solve(cards.face_rule("face_ten"), 24)
    for most in (1, 3):
        config = GpSftConfig(examples=3000, max_solutions=most)
        used: dict[int, set] = {}
        for example in gp_sft.dialogues(config):
            hand = int(cards.multiset_index(example["ranks"]))
            formula = json.loads(example["contents"][-1])["formula"].split("=")[0]
            assert formula in table.solutions(example["ranks"])[:most]
            used.setdefault(hand, set()).add(formula)
        assert max(map(len, used.values())) == most


def test_examples_follow_from_the_config_alone(made: list[dict]) -> None:
    again = GpSftConfig(**BOTH)
    assert again.name == CONFIG.name
    assert comparable(list(gp_sft.dialogues(again))) == comparable(made)
    for change in ({"seed": 1}, {"max_solutions": 2}, {"wording": "full"}, {"examples": 1999}):
        other = GpSftConfig(**{**BOTH, **change})
        assert other.name != CONFIG.name
    reseeded = GpSftConfig(**{**BOTH, "seed": 1})
    assert comparable(list(gp_sft.dialogues(reseeded)))[:50] != comparable(made)[:50]


def test_what_is_said_about_pictures_leaves_texts_alone() -> None:
    """Names and examples of texts stay what they were, so that made data sets are found again."""
    assert GpSftConfig().name == "face_ten-82f30caa2ea9"
    assert CONFIG.name == "face_ten-face_rank-76f68a39983a"
    assert GpSftConfig(**BOTH, **SEEN | {"modality": "text"}).name == CONFIG.name
    few = {"rules": BOTH["rules"], "require_face": ("face_rank",), "examples": 300}
    digest = hashlib.sha256()
    for e in gp_sft.dialogues(GpSftConfig(**few)):
        assert list(e) == ["contents", "rule", "ranks", "held_out", "errors"]
        known = [e["contents"], e["rule"], e["ranks"].tolist(), bool(e["held_out"]), e["errors"]]
        digest.update(json.dumps(known).encode())
    assert digest.hexdigest().startswith("776e13fc4471a041")


def test_names_differ_where_pictures_do() -> None:
    changes = [{}, {"suits": "red"}, {"image_size": 56}, {"jitter_shift": 0.0}]
    changes += [{"jitter_scale": 0.2}, {"modality": "text"}, {"modality": "text", "suits": "red"}]
    names = {GpSftConfig(**{**BOTH, **SEEN, **change}).name for change in changes}
    assert len(names) == len(changes)


@pytest.mark.parametrize("suits", list(cards.SUIT_CHOICES))
def test_pictured_examples_show_their_hand_and_do_not_tell_it(suits: str) -> None:
    given = {**BOTH, **SEEN, "examples": 60, "suits": suits}
    made = list(gp_sft.dialogues(GpSftConfig(**given)))
    told = gp_sft.dialogues(GpSftConfig(**{**given, "modality": "text"}))
    ranks, shown = (np.array([example[name] for example in made]) for name in ("ranks", "suits"))
    wanted = of_hands(48, 0, ranks, shown, 0.1, 0.1)
    for example, text, picture in zip(made, told, wanted, strict=True):
        assert example["image"] == picture
        assert set(example["suits"]) <= set(cards.SUIT_CHOICES[suits])
        assert len({*zip(example["ranks"], example["suits"], strict=True)}) == 4
        faces = {name: getattr(cards.face_rule(example["rule"]), name) for name in FACES}
        asked = BRIEF.prompt_image.format(**faces, target=24)
        assert example["contents"] == [asked, *text["contents"][1:]]
        assert (example["ranks"] == text["ranks"]).all() and example["errors"] == text["errors"]


def test_suits_are_dealt_as_in_the_game() -> None:
    """Every set of four cards of those suits has the same chance."""
    config = GpSftConfig(examples=30_000, hands="all", suits="black")
    hands = np.array([e["ranks"] for e in gp_sft.dialogues(config)])
    assert max(np.bincount(hand).max() for hand in hands) == 2  # no third black card of a rank
    table = formulas.solve(cards.face_rule("face_ten"), 24)
    known = cards.admissible_hands(table.solvable, "black") // 4
    pairs = [np.mean([len(set(h)) < 4 for h in some.tolist()]) for some in (hands, known)]
    assert abs(pairs[0] - pairs[1]) < 0.01


TOLD = {"examples": 300, "suboptimal": 0.3}
SHOWN = {**SEEN, "examples": 50, "suits": "black"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a process without TensorFlow has made two data sets."""
    place = tmp_path_factory.mktemp("data")
    code = f"""
import sys
from gp_virl.data.gp_sft import FORMAT, GpSft, GpSftConfig
for given in ({TOLD!r}, {SHOWN!r}):
    builder = GpSft(config=GpSftConfig(**given), data_dir={str(place)!r}, file_format=FORMAT)
    builder.download_and_prepare()
    assert len(builder.source()) == given["examples"] and builder.source()[9]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    return place


@pytest.mark.parametrize("given", [TOLD, SHOWN], ids=["text", "image"])
def test_the_builder_writes_and_reads_without_tensorflow(prepared: Path, given: dict) -> None:
    config = GpSftConfig(**given)
    builder = GpSft(config=config, data_dir=prepared, file_format=FORMAT)
    for read, example in zip(builder.source(), gp_sft.dialogues(config), strict=True):
        assert [text.decode() for text in read["contents"]] == example["contents"]
        assert read["rule"].decode() == example["rule"]
        assert (read["ranks"] == example["ranks"]).all()
        assert (read["held_out"], read["errors"]) == (example["held_out"], example["errors"])
        assert read.get("image") == example.get("image")
        assert "suits" not in example or (read["suits"] == example["suits"]).all()


def test_pictures_are_read_by_anyone(prepared: Path) -> None:
    """TFDS's own reading is exactly what was drawn."""
    config = GpSftConfig(**SHOWN)
    builder = GpSft(config=config, data_dir=prepared, file_format=FORMAT)
    for read, kept in zip(builder.as_data_source("train"), builder.source(), strict=True):
        assert (read["image"] == decoded(kept["image"])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": {"face_ten": 0.5}}, "shares that sum to 1"),
        ({"rules": {"face_elf": 1.0}}, "face_ten, face_rank"),
        ({"require_face": ("face_rank",)}, "names of `rules`"),
        ({"hands": "some"}, "all, seen, held_out"),
        ({"held_out": 1.0}, "held_out < 1"),
        ({"examples": 0}, ">= 1"),
        ({"suboptimal": 1.5}, "0 to 1"),
        ({"wording": "brieff"}, "no wording"),
        ({"modality": "sound"}, "text, image"),
        ({"suits": "green"}, "all, black, red"),
        ({"image_size": 8}, ">= 48"),
        ({"jitter_shift": -0.1}, ">= 0"),
        ({"jitter_scale": 1.0}, "jitter_scale < 1"),
    ],
)
def test_an_impossible_config_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GpSftConfig(**change)


def test_an_unreachable_target_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a target"):
        list(gp_sft.dialogues(GpSftConfig(target=99_999)))


@pytest.mark.parametrize("kind", gp_sft.KINDS)
def test_spoilt_formulas_are_what_they_are_meant_to_be(kind: str) -> None:
    draw = random.Random(0)
    values = [4, 10, 4, 7]
    outcomes = Counter(
        plain_verdict(gp_sft.spoilt("(4+4)*(10-7)", kind, draw), values, 24)[0] for _ in range(300)
    )
    meant = {"value": "wrong_value", "numbers": "wrong_numbers", "illegal": "illegal"}[kind]
    assert outcomes[meant] > 250
