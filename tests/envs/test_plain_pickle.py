"""Plain data is read as pickle reads it; nothing else is, and nothing is ever run."""

import os
import pickle
import pickletools
import struct
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.envs import plain_pickle
from gp_virl.envs.plain_pickle import UnsafePickleError

KEYS = st.text() | st.integers() | st.floats(allow_nan=False)
KEYS = KEYS | st.tuples(KEYS, KEYS) | st.just(())
PLAIN = st.recursive(
    st.text() | st.integers() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner)
    ),
    max_leaves=20,
)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Persistent(pickle.Pickler):
    """Writes every number as a reference to something outside the file."""

    def persistent_id(self, thing):
        return "outside" if isinstance(thing, float) else None


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_what_pickle_makes_of_it(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    read = plain_pickle.loads(data)
    assert read == value and repr(read) == repr(value)  # repr tells 1 from 1.0, tuples from lists
    assert plain_pickle.loads(pickletools.optimize(data)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_many_entries_and_shared_ones(protocol: int) -> None:
    shared = ["pano", 1 << 70, -5, 1e300]
    mapping = {(i / 7, -i * 1.5): [f"id{i}", shared] for i in range(3000)}
    read = plain_pickle.loads(pickle.dumps(mapping, protocol))
    assert read == mapping
    assert read[0.0, -0.0][1] is read[1 / 7, -1.5][1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "executed"
    attacks = [
        Calls(os.system, f"touch {trace}"),
        Calls(open, str(trace), "w"),
        Calls(eval, f"open({str(trace)!r}, 'w')"),
        {(40.0, -74.0): Calls(os.mkdir, str(trace))},
        [Calls(exec, f"open({str(trace)!r}, 'w')")],
    ]
    for attack in attacks:
        with pytest.raises(UnsafePickleError, match="allowed: dict, list, tuple, str, int and"):
            plain_pickle.loads(pickle.dumps(attack, protocol))
    assert not trace.exists()
    pickle.loads(pickle.dumps(attacks[1], protocol))  # the attack itself works
    assert trace.exists()


def test_instructions_written_by_hand_run_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    command = f"touch {trace}".encode()
    text = b"X" + struct.pack("<I", len(command)) + command
    attacks = [
        b"cos\nsystem\n(" + text + b"tR.",  # GLOBAL, REDUCE
        b"(cos\nsystem\n" + text + b"o.",  # OBJ
        b"(" + text + b"ios\nsystem\n.",  # INST
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01" + text + b"\x85R.",  # EXT1
        b"}cbuiltins\nprint\n\x81.",  # NEWOBJ
        b"}}b.",  # BUILD
        b"\x80\x02cbuiltins\ndict\n)R.",  # an allowed type, called
    ]
    for attack in attacks:
        with pytest.raises(UnsafePickleError, match="nothing was run"):
            plain_pickle.loads(attack)
    assert not trace.exists()


def test_other_types_are_refused(tmp_path: Path) -> None:
    point = namedtuple("point", "lat lng")
    globals()["point"] = point
    point.__module__, point.__qualname__ = __name__, "point"
    others = [None, True, b"x", {1}, frozenset(), 1j, np.float64(1), OrderedDict(a=1), Path("x")]
    for other in [*others, bytearray(b"x"), dict, Calls(dict), Calls(float, "1")]:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(UnsafePickleError, match=r"byte \d+: given \w+"):
                plain_pickle.loads(pickle.dumps({"a": other}, protocol))
    path = tmp_path / "persistent.pkl"
    for protocol in (0, 4):
        with path.open("wb") as file:
            Persistent(file, protocol).dump([1.5])
        with pytest.raises(UnsafePickleError, match="PERSID"):
            plain_pickle.loads(path.read_bytes())


def test_sizes_that_a_file_only_claims_cost_nothing() -> None:
    huge = struct.pack("<Q", 1 << 60)
    refused = [
        b"\x80\x04\x8d" + huge + b"abc.",  # a text of 2**60 bytes
        b"\x80\x04X\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f.",  # an integer of 2**31 bytes
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x04\x95" + huge + b"X.",  # a frame
    ]
    for data in refused:
        with pytest.raises(UnsafePickleError):
            plain_pickle.loads(data)
    assert plain_pickle.loads(b"\x80\x02]r\xff\xff\xff\xff.") == []  # memo number 2**32 - 1
    with pytest.raises(UnsafePickleError, match="at most"):
        plain_pickle.loads(bytes(plain_pickle.LARGEST + 1))


def test_keys_that_take_forever_to_hash_are_refused() -> None:
    nested = b"()q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b"l"  # a pair of pairs of pairs ...
    assert len(plain_pickle.loads(b"\x80\x02" + nested + b".")) == 101
    with pytest.raises(UnsafePickleError, match="a key is neither"):
        plain_pickle.loads(b"\x80\x02" + nested + b"}h\x00K\x01s.")
    deep = b"\x80\x02}" + b")" + b"\x85" * 50_000 + b"K\x01s."
    with pytest.raises(UnsafePickleError, match="a key is neither"):
        plain_pickle.loads(deep)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        plain_pickle.loads(data)
    except UnsafePickleError as error:
        assert str(error)


def test_damaged_files_are_refused() -> None:
    data = pickle.dumps({(1.5, 2.5): "a", (3.5, 4.5): "b"})
    for end in range(len(data)):
        with pytest.raises(UnsafePickleError):
            plain_pickle.loads(data[:end])
    for one in (
        b"K\x01K\x02.",
        b".",
        b"(.",
        b"K\x01a.",
        b"]K\x01s.",
        b"}(K\x01u.",
        b"h\x05.",
        b"t.",
    ):
        with pytest.raises(UnsafePickleError, match="damaged"):
            plain_pickle.loads(one)
    with pytest.raises(UnsafePickleError, match="not a whole pickle"):
        plain_pickle.loads(b"not a pickle")
