"""The PyTrees that cross rooms, and the axis letters of every shape in this package.

B lanes (a batch of conversations)   S tokens of a context        T tokens of one reply
R turns in time order                N rows of a training batch   K turns of one row
V vocabulary rows                    D model width                L bytes of one reply
"""

from flax import struct
from jaxtyping import Array, Bool, Float, Int

# Numbers of a reply's formula that are kept for the verdict and the feedback; all are counted.
KEPT_NUMBERS = 8
CARDS = 4


@struct.dataclass
class Context:
    """A right-padded token sequence; tokens at and after `length` mean nothing."""

    tokens: Int[Array, "*b S"]
    length: Int[Array, "*b"]


@struct.dataclass
class Answer:
    """What the reply says, before any hand or rule is looked at: its last formula and its cards.

    An expression with four numbers has three operators. Applying first the operator with the
    larger (depth, is * or /), the left one on ties, is exactly the usual order of evaluation,
    at any depth of parentheses, so no tree is kept.
    """

    legal: Bool[Array, "*b"]  # an arithmetic expression over + - * / ( ) and integer literals
    numbers: Int[Array, "*b 8"]  # in order; values above 9999 are kept as 9999
    count: Int[Array, "*b"]  # of all numbers in the formula, also of those not kept
    operators: Int[Array, "*b 3"]  # 0 + 1 - 2 * 3 /
    depths: Int[Array, "*b 3"]  # parentheses open around each operator
    # How many cards of each rank the reply's last list of cards names (A, 2..10, J, Q, K); none
    # if it isn't a closed list or if any of its elements is no card.
    named: Int[Array, "*b 13"]


@struct.dataclass
class Verdict:
    """The verifier's judgement of one reply."""

    outcome: Int[Array, "*b"]  # index into the environment's OUTCOMES
    reward: Float[Array, "*b"]
    solved: Bool[Array, "*b"]  # the episode is won with this reply
    recognized: Bool[Array, "*b"]  # what there was to see in an image is named rightly
    terminated: Bool[Array, "*b"]  # nothing follows
    truncated: Bool[Array, "*b"]  # cut off from outside; the future had value
    closed: Bool[Array, "*b"]  # the next reply opens another conversation, of this episode or not
