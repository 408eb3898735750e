"""Both kinds of wordings from users' files, good and bad."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import pytest

from gp_virl.text import prompts, route_prompts, wordings
from gp_virl.text.template import TemplateError

MODULES = pytest.mark.parametrize("module", [prompts, route_prompts])


@MODULES
def test_a_users_file_in_json_and_toml(module: ModuleType, tmp_path: Path) -> None:
    assert module.load_wording("full") is module.FULL
    changes = {"reply": module.BRIEF.reply.replace("{", "<<", 1), "answer_field": '"'}
    fields = dataclasses.asdict(module.BRIEF) | changes
    (tmp_path / "mine.json").write_text(json.dumps(fields), encoding="utf-8")
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    (tmp_path / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
    for name in ("mine.json", "mine.toml"):
        read = module.load_wording(str(tmp_path / name))
        assert type(read) is type(module.BRIEF) and dataclasses.asdict(read) == fields


@MODULES
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "broken.json: not readable as JSON"),
        ("[]", "broken.json: must be a table with the fields prompt"),
        ({"hello": "x"}, r"broken.json: unknown fields \['hello'\].*has exactly the fields prompt"),
        ({"reply": ...}, r"broken.json: unknown fields \[\], missing fields \['reply'\]"),
        ({"reply": 3}, "broken.json: wording field 'reply' is 3, must be str"),
        ({"reply": "{joker}"}, r"broken.json: wording 'reply': unknown slot \{joker\}"),
    ],
)
def test_a_wrong_file_is_named(
    module: ModuleType, content: str | dict, message: str, tmp_path: Path
) -> None:
    if isinstance(content, dict):
        fields = dataclasses.asdict(module.BRIEF) | content
        content = json.dumps({name: text for name, text in fields.items() if text is not ...})
    broken = tmp_path / "broken.json"
    broken.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        module.load_wording(str(broken))


@MODULES
def test_a_file_that_is_not_there(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for name in ("briefer", str(tmp_path / "none.json"), str(tmp_path / "mine.txt")):
        with pytest.raises(ValueError, match=f"no wording '{name}'; give one of 'full', 'brief'"):
            module.load_wording(name)


def test_errors_keep_their_kind() -> None:
    fields = dataclasses.asdict(prompts.BRIEF) | {"solved": "{value}"}
    with pytest.raises(TemplateError, match="here: wording 'solved'"):
        wordings.from_fields(fields, "here", prompts.Wording)
