"""GeneralPoints read slowly and plainly: regular expressions, a recursive parser, exact fractions.

Nothing here is shared with the array code.
"""

import itertools
import re
from fractions import Fraction

KEY = re.compile(rb"""(["'])formula\1[ \t\n\r]*:[ \t\n\r]*""")
CARDS_KEY = re.compile(rb"""(["'])cards\1[ \t\n\r]*:[ \t\n\r]*""")
CARD = rb"(?:A|[2-9]|10|J|Q|K)"
TOKEN = re.compile(rb"(?:[ \t\n\r]|\xc2\xa0)+|([0-9]+)|([-+*()/])")


def undone(reply: bytes) -> bytes:
    """The reply with its JSON escapes undone; NUL is what means nothing in it."""

    def meant(match: re.Match) -> bytes:
        code = match[1]
        if len(code) == 5:
            character = chr(int(code[1:], 16)).replace("\u00a0", " ")
            return character.encode() if character.isascii() and character not in "\"'\\" else b"\0"
        return {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"/": b"/"}.get(code, b"\0")

    return re.sub(rb"\\(u[0-9a-fA-F]{4}|.)", meant, reply, flags=re.DOTALL)


def values(key: re.Pattern, text: bytes) -> list[bytes]:
    """What follows each key that doesn't stand behind a letter and perhaps blanks."""
    found = list(key.finditer(text))
    before = [text[: match.start()].rstrip(b" \t\n\r")[-1:] for match in found]
    return [text[m.end() :] for m, b in zip(found, before, strict=True) if not b.isalpha()]


class Illegal(Exception):
    """The reply has no legal formula."""


def formula_text(reply: bytes) -> bytes:
    """The content of the last formula's string, up to its first `=`."""
    found = values(KEY, undone(reply))
    if not found:
        raise Illegal("no key")
    string = re.match(rb"""(["'])(.*?)\1""", found[-1], re.DOTALL)
    if not string:
        raise Illegal("not a whole string")
    return string[2].split(b"=")[0]


def named_cards(reply: bytes) -> list[str]:
    """The symbols in the last list of cards; none if anything in it is no card."""
    found = values(CARDS_KEY, undone(reply))
    inside = re.match(rb"\[([^\]]*)\]", found[-1]) if found else None
    if not inside:
        return []
    elements = [element.strip(b" \t\n\r") for element in inside[1].split(b",")]
    if len(elements) > 1 and not elements[-1]:
        elements.pop()  # a comma after the last
    found = []
    for element in elements:
        if len(element) > 1 and element[:1] == element[-1:] and element[:1] in b"\"'":
            element = element[1:-1].strip(b" \t\n\r")
        if not re.fullmatch(CARD, element):
            return []
        found.append(element.decode())
    return found


def tokens(text: bytes) -> list[str]:
    """Numbers, operators and parentheses; Illegal for anything else but blanks."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise Illegal(f"{text[at:]!r}")
        if match[1] or match[2]:
            found.append((match[1] or match[2]).decode())
        at = match.end()
    return found


class Parser:
    """Dijkstra's shunting-yard, so that depth is no limit."""

    def __init__(self, reply: bytes):
        self.numbers: list[int] = []
        self.output: list[str | int] = []  # reverse Polish
        waiting: list[str] = []
        wants_operand = True
        for token in tokens(formula_text(reply)):
            if wants_operand != (token == "(" or token.isdigit()):
                raise Illegal(token)
            if token.isdigit():
                number = int(token.lstrip("0")[:20] or 0)  # 20 digits are as foreign as 2,000
                self.numbers.append(number)
                self.output.append(number)
                wants_operand = False
            elif token == "(":
                waiting.append(token)
            elif token == ")":
                while waiting and waiting[-1] != "(":
                    self.output.append(waiting.pop())
                if not waiting:
                    raise Illegal("closes nothing")
                waiting.pop()
            else:
                while waiting and waiting[-1] != "(" and (waiting[-1] in "*/" or token in "+-"):
                    self.output.append(waiting.pop())
                waiting.append(token)
                wants_operand = True
        if wants_operand or "(" in waiting:
            raise Illegal("incomplete")
        self.output += reversed(waiting)

    def value(self) -> Fraction | None:
        """The exact value; None if something is divided by zero."""
        stack: list[Fraction] = []
        for item in self.output:
            if isinstance(item, int):
                stack.append(Fraction(item))
                continue
            right, left = stack.pop(), stack.pop()
            if item == "/" and right == 0:
                return None
            stack.append(apply(item, left, right))
        return stack[0]


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def judge(reply: bytes, values: list[int], target: int, symbols: list[str] | None = None) -> dict:
    """outcome, and what the feedback may name: foreign, unused, value.

    `symbols` are the cards of a picture, which the reply must name before its formula counts.
    """
    said = {"outcome": "illegal", "foreign": [], "unused": [], "value": None}
    if symbols is not None and sorted(named_cards(reply)) != sorted(symbols):
        return said | {"outcome": "unrecognized"}
    try:
        parsed = Parser(reply)
    except Illegal:
        return said
    left, foreign = list(values), []
    for number in parsed.numbers:
        if number in left:
            left.remove(number)
        else:
            foreign.append(number)
    if foreign or left:
        return said | {"outcome": "wrong_numbers", "foreign": foreign, "unused": sorted(left)}
    value = parsed.value()
    if value == target:
        return said | {"outcome": "solved", "value": value}
    return said | {"outcome": "wrong_value", "value": value}


def written_once(values: tuple[int, ...], target: int) -> set[str]:
    """All formulas over the four values that reach the target, none with needless parentheses.

    Every tree is written with all its parentheses; then pairs are dropped one by one as long as
    the text without them has the same value for other numbers too.
    """
    found = set()
    for order in set(itertools.permutations(values)):
        for text in _full_texts(list(order)):
            if _value(text) == target:
                found.add(_bare(text))
    return found


def _full_texts(numbers: list[int]) -> list[str]:
    if len(numbers) == 1:
        return [str(numbers[0])]
    return [
        f"({left}{operator}{right})"
        for split in range(1, len(numbers))
        for left in _full_texts(numbers[:split])
        for right in _full_texts(numbers[split:])
        for operator in "+-*/"
    ]


def _value(text: str) -> Fraction | None:
    return Parser(f'"formula":"{text}"'.encode()).value()


# Numbers so large and unlike that two different formulas don't meet by chance.
_STRANGERS = (1009, 3163, 10007, 31627)


def _bare(text: str) -> str:
    """`text` without each pair of parentheses that doesn't change what it means."""
    places = iter(_STRANGERS)
    strange = re.sub(r"[0-9]+", lambda _: str(next(places)), text)
    numbers = re.findall(r"[0-9]+", text)
    meant = _value(strange)
    while True:
        for shorter in _one_pair_less(strange):
            if _value(shorter) == meant:
                strange = shorter
                break
        else:
            break
    places = iter(numbers)
    return re.sub(r"[0-9]+", lambda _: next(places), strange)


def _one_pair_less(text: str) -> list[str]:
    opened, texts = [], []
    for at, character in enumerate(text):
        if character == "(":
            opened.append(at)
        elif character == ")":
            start = opened.pop()
            texts.append(text[:start] + text[start + 1 : at] + text[at + 1 :])
    return texts
