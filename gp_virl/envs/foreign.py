"""Words for values that strangers wrote: short, and made without looking at all of the value.

A file of 100 bytes can hold a list whose `repr` has 2 ** 40 characters, or a list too deep for it.
"""

import reprlib

LONGEST = 80  # characters of what is shown
_LARGEST_BITS = 128  # of an integer whose digits are shown


class _Short(reprlib.Repr):
    """At most a few parts of each container, a few levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = 4
        self.maxstring = LONGEST

    def repr_int(self, given: int, level: int) -> str:
        bits = given.bit_length()
        return repr(given) if bits <= _LARGEST_BITS else f"an integer of {bits} bits"

    def repr_dict(self, given: dict, level: int) -> str:
        if level <= 0 or len(given) > self.maxdict:  # reprlib would sort all keys
            return f"{{{len(given)} entries}}"
        return super().repr_dict(given, level)


_SHORT = _Short()


def shown(given: object) -> str:
    """The `repr` of plain data (what JSON and `plain_pickle` read), cut to 80 characters.

    Takes no time that grows with the value, and never raises.
    """
    text = _SHORT.repr(given)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
