"""Reads pickles of plain data without the power of pickle.

A pickle is a program that may call anything. Here only its instructions for dictionaries, lists,
tuples, texts and numbers are carried out; any other refuses the file before it has an effect,
because nothing here can import, call or look up a thing. The standard library's `pickletools`
takes the file apart; a length or a memo number that a file claims reserves no memory.
"""

import pickletools
from collections.abc import Iterator

LARGEST = 1 << 28  # bytes of a file; the released mapping files are a few megabytes
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_PUT, _TAKE = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_MARK = object()


class UnsafePickleError(ValueError):
    """The bytes are no whole pickle of plain dict, list, tuple, str, int and float."""


def loads(data: bytes) -> object:
    """The value pickled in `data`; UnsafePickleError if it is anything but plain data.

    Keys of dictionaries may be texts, numbers and flat tuples of these, no more: the hash of a
    deeply nested key can take forever.
    """
    if len(data) > LARGEST:
        raise UnsafePickleError(f"given {len(data)} bytes, allowed: at most {LARGEST}")
    stack: list = []
    memo: dict[int, object] = {}
    try:
        for name, argument, position in _instructions(data):
            try:
                if name == "STOP":
                    return _only(stack)
                _carry_out(name, argument, stack, memo)
            except (IndexError, KeyError):
                raise UnsafePickleError(
                    f"byte {position}: {name} has nothing to work on; the file is damaged"
                ) from None
            except UnsafePickleError as error:
                raise UnsafePickleError(f"byte {position}: {error}") from None
    except UnsafePickleError:
        raise
    except (ValueError, OverflowError) as error:
        raise UnsafePickleError(f"not a whole pickle: {error}") from None
    raise UnsafePickleError("not a whole pickle: it doesn't stop")


def _instructions(data: bytes) -> Iterator[tuple[str, object, int | None]]:
    for opcode, argument, position in pickletools.genops(data):
        yield opcode.name, argument, position


def _carry_out(name: str, argument: object, stack: list, memo: dict[int, object]) -> None:
    """One instruction; names are those of `pickletools`."""
    if name in _NUMBERS or name in _TEXTS:
        if type(argument) not in (int, float, str):  # INT also writes True and False
            raise UnsafePickleError(_refusal(f"{name} {argument!r}"))
        stack.append(argument)
    elif name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "MEMOIZE":
        memo[len(memo)] = _top(stack)
    elif name in _PUT:
        memo[argument] = _top(stack)
    elif name in _TAKE:
        stack.append(memo[argument])
    elif name in ("TUPLE", "LIST", "DICT"):
        items = _since_mark(stack)
        stack.append({"TUPLE": tuple, "LIST": list, "DICT": _pairs}[name](items))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple([_pop(stack) for _ in range(int(name[-1]))][::-1]))
    elif name in ("APPEND", "APPENDS"):
        items = [_pop(stack)] if name == "APPEND" else _since_mark(stack)
        _top(stack, list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [_pop(stack), _pop(stack)][::-1] if name == "SETITEM" else _since_mark(stack)
        _top(stack, dict).update(_pairs(items))
    elif name not in ("PROTO", "FRAME"):
        raise UnsafePickleError(_refusal(name if argument is None else f"{name} {argument!r:.80}"))


def _refusal(given: str) -> str:
    return f"given {given}, allowed: dict, list, tuple, str, int and float; nothing was run"


def _top(stack: list, kind: type = object) -> object:
    if stack[-1] is _MARK or not isinstance(stack[-1], kind):
        raise IndexError
    return stack[-1]


def _pop(stack: list) -> object:
    _top(stack)
    return stack.pop()


def _since_mark(stack: list) -> list:
    items = []
    while stack[-1] is not _MARK:
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def _pairs(items: list) -> dict:
    keys, values = items[::2], items[1::2]
    if len(keys) != len(values):
        raise IndexError
    for key in keys:
        parts = key if type(key) is tuple else (key,)
        if not all(type(part) in (str, int, float) for part in parts):
            raise UnsafePickleError("a key is neither a text, a number nor a flat tuple of these")
    return dict(zip(keys, values, strict=True))


def _only(stack: list) -> object:
    value = _pop(stack)
    if stack:
        raise IndexError
    return value
