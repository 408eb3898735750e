"""Log-probabilities at scored positions against log_softmax, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.evals.program_flops import program_flops
from gp_virl.train.logp import token_logp
from tests.eight_devices import printed

SHAPE, WIDTH, VOCABULARY = (2, 13), 8, 50


def plain(hidden, head, target, scored, temperature):
    logp = jax.nn.log_softmax(hidden @ head / temperature)
    hit = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    return jnp.where(scored, hit, 0.0), jnp.where(scored, -(jnp.exp(logp) * logp).sum(-1), 0.0)


def arrays(share: float):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (*SHAPE, WIDTH))
    head = 3 * jax.random.normal(keys[1], (WIDTH, VOCABULARY))
    target = jax.random.randint(keys[2], SHAPE, 0, VOCABULARY)
    return hidden, head, target, jax.random.uniform(keys[3], SHAPE) < share


def pulled(scores, hidden, head):
    """Both scores and the gradients of a sum that weighs every position differently."""

    def total(hidden, head):
        logp, entropy = scores(hidden, head)
        weight = jnp.arange(1.0, logp.size + 1).reshape(logp.shape)
        return (weight * logp).sum() + (weight * entropy**2).sum(), (logp, entropy)

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, head)


def close(a, b, most: float = 1e-5):
    """Equal to `most` of the largest entry, or of 1 where all are smaller."""
    np.testing.assert_allclose(a, b, rtol=0, atol=most * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("chunk", "block"), [(7, 4), (10, 26), (25, 1), (50, 5), (1000, 1000)])
def test_scored_positions(chunk: int, block: int, share: float):
    hidden, head, target, scored = arrays(share)
    got = pulled(lambda h, w: token_logp(h, w, target, scored, 0.7, chunk, block), hidden, head)
    want = pulled(lambda h, w: plain(h, w, target, scored, 0.7), hidden, head)
    jax.tree.map(close, got, want)


def test_large_logits_stay_finite():
    hidden, head, target, scored = arrays(0.5)
    got = pulled(lambda h, w: token_logp(h, w, target, scored, 1e-3, 7, 4), hidden, head)
    want = pulled(lambda h, w: plain(h, w, target, scored, 1e-3), hidden, head)
    jax.tree.map(lambda a, b: close(a, b, 5e-3), got, want)  # float32 has no more digits


def test_gradients_of_bfloat16_are_as_good_as_bfloat16():
    """The head stays in float32, as the parameters that training updates do."""
    hidden, head, target, scored = arrays(0.5)
    want = pulled(lambda h, w: plain(h, w, target, scored, 1.0), hidden, head)[1]
    rounded = hidden.astype(jnp.bfloat16)
    got = pulled(lambda h, w: token_logp(h, w, target, scored, 1.0, 7, 4), rounded, head)[1]
    assert [x.dtype for x in got] == [jnp.bfloat16, jnp.float32]
    for a, b in zip(got, want, strict=True):
        error = np.linalg.norm(np.float32(a) - b) / np.linalg.norm(b)
        assert error < 0.05


def test_never_holds_all_logits():
    def logp(hidden, head):
        zero = jnp.zeros(64, int)
        return token_logp(hidden, head, zero, zero == 0, chunk=128, block=32)[0].sum()

    shapes = (
        jax.ShapeDtypeStruct((64, 16), jnp.float32),
        jax.ShapeDtypeStruct((16, 4096), jnp.float32),
    )
    text = str(jax.make_jaxpr(jax.grad(logp))(*shapes))
    assert "f32[32,128]" in text
    assert "64,4096]" not in text and "32,4096]" not in text


def test_work_is_that_of_blocks_with_scored_positions():
    def gradients(hidden, head, target, scored):
        return jax.grad(
            lambda h, w: token_logp(h, w, target, scored, 1.0, 7, 4)[0].sum(), argnums=(0, 1)
        )(hidden, head)

    count = program_flops(jax.make_jaxpr(gradients)(*arrays(1.0)))
    assert count.fixed == 0 and count.depth == 2  # all of it in the two passes' loops
    columns = 8 * 7  # 50 in chunks
    assert count.total((3, 3)) == 4 * 2 * (3 * 4) * WIDTH * columns


EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from gp_virl.sharding import mesh_of
from gp_virl.train.logp import token_logp
from tests.train.test_logp import close, pulled

keys = jax.random.split(jax.random.key(1), 4)
for columns in (48, 50):  # cut by the mesh, and not
    hidden = jax.random.normal(keys[0], (8, 13, 8))
    head = 3 * jax.random.normal(keys[1], (8, columns))
    target = jax.random.randint(keys[2], (8, 13), 0, columns)
    # Rows differ much in how many positions are scored; some have none.
    scored = jax.random.uniform(keys[3], (8, 13)) < jnp.linspace(-0.3, 1.1, 8)[:, None]
    given = (hidden, head, target, scored)

    def all_of(hidden, head, target, scored):
        return pulled(lambda h, w: token_logp(h, w, target, scored, 0.7, 7, 4), hidden, head)

    one = jax.jit(all_of)(*given)
    for sizes in ((2, 2, 2), (8, 1, 1), (1, 1, 8), (1, 4, 2)):
        with jax.set_mesh(mesh_of(*sizes)):
            many = jax.jit(all_of)(*given)
            few = jax.jit(all_of)(*[x[:3] if x is not head else x for x in given])  # undivided rows
        jax.tree.map(close, many, one)
        close(few[0][1][0], one[0][1][0][:3])
print("same")
"""


def test_a_mesh_of_eight_scores_as_one_device_does():
    assert printed(EIGHT_DEVICES) == "same"
