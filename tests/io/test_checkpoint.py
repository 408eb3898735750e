"""Checkpoints: what comes back is what went in, bit for bit; what doesn't fit is named."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gp_virl.io import checkpoint
from gp_virl.io.checkpoint import Keep
from tests.object_store import Store, store  # noqa: F401 - a fixture


def train_state() -> dict[str, Any]:
    params = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    return {
        "params": params,
        "plain": {
            "w": jnp.array([0.1, jnp.nan, -0.0, jnp.inf]),
            "half": jnp.full(3, 0.1, "bfloat16"),
        },
        "opt": optax.adamw(1e-3).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 2),
        "step": jnp.int32(5),
        "seen": np.arange(3, dtype=np.int8),
    }


def bits(tree: Any) -> list[bytes]:
    def raw(leaf: Any) -> bytes:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype).encode() + np.asarray(jax.random.key_data(leaf)).tobytes()
        return str(leaf.dtype).encode() + np.asarray(leaf).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tree = train_state()
    checkpoint.save(tmp_path / "run", 3, tree, {"branch": "rl", "tokens": 12})
    for target in (tree, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))):
        back, metadata = checkpoint.restore(tmp_path / "run", target)
        assert jax.tree.structure(back) == jax.tree.structure(target)
        assert bits(back) == bits(tree)
        assert metadata == {"branch": "rl", "tokens": 12}
    drawn = jax.random.uniform(back["keys"][0])
    assert drawn == jax.random.uniform(tree["keys"][0])


def test_a_part_can_be_restored_alone(tmp_path: Path) -> None:
    tree = train_state()
    checkpoint.save(tmp_path, 0, tree)
    with pytest.raises(checkpoint.IncompatibleTreeError, match="opt/"):
        checkpoint.restore(tmp_path, {"params": tree["params"]})
    back, _ = checkpoint.restore(tmp_path, {"params": tree["params"]}, partial=True)
    assert bits(back) == bits(tree["params"])
    with pytest.raises(checkpoint.IncompatibleTreeError, match="critic"):
        checkpoint.restore(tmp_path, {"critic": jnp.zeros(2)}, partial=True)


def test_leaves_go_where_the_target_says(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 0, {"w": jnp.arange(8.0)})
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    target = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
    back, _ = checkpoint.restore(tmp_path, target)
    assert back["w"].sharding == sharding
    assert back["w"].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ({"a": {"w": (3,)}}, "a/w: stored float32[2], target float32[3]"),
        ({"a": {"v": (2,)}}, "a/v: stored nothing, target float32[2]"),
        ({"a": {"v": (2,)}}, "a/w: stored float32[2], target nothing"),
    ],
)
def test_an_incompatible_target_is_named(tmp_path: Path, target: dict, named: str) -> None:
    checkpoint.save(tmp_path, 0, {"a": {"w": jnp.zeros(2)}})
    target = jax.tree.map(jnp.zeros, target, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(checkpoint.IncompatibleTreeError) as refused:
        checkpoint.restore(tmp_path, target)
    assert named in str(refused.value)


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 0, {"w": jnp.zeros(2)})
    with pytest.raises(checkpoint.IncompatibleTreeError, match="bfloat16"):
        checkpoint.restore(tmp_path, {"w": jnp.zeros(2, "bfloat16")})


def test_old_steps_go_as_the_policy_says(tmp_path: Path) -> None:
    for step in range(0, 60, 10):
        checkpoint.save(
            tmp_path, step, {"x": jnp.int32(step)}, {"at": step}, Keep(last=2, every=20)
        )
    assert checkpoint.steps(tmp_path) == [0, 20, 40, 50]
    assert checkpoint.latest(tmp_path) == 50
    assert checkpoint.metadata(tmp_path, 20) == {"at": 20}
    assert checkpoint.restore(tmp_path, {"x": jnp.int32(0)}, 20)[0]["x"] == 20


def test_all_steps_stay_without_a_limit(tmp_path: Path) -> None:
    for step in range(4):
        checkpoint.save(tmp_path, step, {"x": jnp.int32(step)}, keep=Keep(last=None))
    assert checkpoint.steps(tmp_path) == [0, 1, 2, 3]


def test_an_interrupted_save_is_ignored_and_swept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 10, {"x": jnp.int32(10)})
    left = tmp_path / "20.orbax-checkpoint-tmp" / "tree"
    left.mkdir(parents=True)
    (left / "manifest.ocdbt").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == 10
    assert checkpoint.restore(tmp_path, {"x": jnp.int32(0)})[0]["x"] == 10
    checkpoint.save(tmp_path, 20, {"x": jnp.int32(20)})
    assert checkpoint.steps(tmp_path) == [10, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


def test_a_failing_save_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"x": jnp.int32(1)})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 2, {"x": jnp.int32(2)}, {"bad": object()})
    assert checkpoint.latest(tmp_path) == 1
    assert checkpoint.restore(tmp_path, {"x": jnp.int32(0)})[0]["x"] == 1


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    with pytest.raises(checkpoint.MissingCheckpointError, match="none"):
        checkpoint.restore(tmp_path / "none", {"x": jnp.zeros(1)})
    assert not (tmp_path / "none").exists()
    checkpoint.save(tmp_path, 4, {"x": jnp.zeros(1)})
    with pytest.raises(checkpoint.MissingCheckpointError, match=r"no step 5.*\[4\]"):
        checkpoint.restore(tmp_path, {"x": jnp.zeros(1)}, 5)


def test_a_step_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 4, {"x": jnp.zeros(1)})
    with pytest.raises(checkpoint.ExistingStepError, match="step 4"):
        checkpoint.save(tmp_path, 4, {"x": jnp.ones(1)})


def test_a_leaf_that_is_no_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointLeafError, match="'a/b' is int"):
        checkpoint.save(tmp_path, 0, {"a": {"b": 3}})
    assert checkpoint.latest(tmp_path) is None


def test_keys_go_where_the_target_says(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 0, {"keys": jax.random.split(jax.random.key(3), 4)})
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    keys = jax.device_put(jax.random.split(jax.random.key(0), 4), sharding)
    back, _ = checkpoint.restore(tmp_path, {"keys": keys})
    assert back["keys"].sharding.is_equivalent_to(sharding, 1)
    assert bits(back) == bits({"keys": jax.random.split(jax.random.key(3), 4)})


def test_a_store_keeps_the_same_and_forgets_an_interrupted_save(store: Store) -> None:  # noqa: F811
    place, tree = "gs://bucket/run/rl", train_state()
    assert checkpoint.latest(place) is None
    for step in (1, 2, 3):
        checkpoint.save(place, step, tree | {"step": jnp.int32(step)}, {"tokens": step})
    assert checkpoint.steps(place) == [2, 3]
    back, metadata = checkpoint.restore(place, tree)
    assert bits(back) == bits(tree | {"step": jnp.int32(3)}) and metadata == {"tokens": 3}
    # A kill before the end leaves all but the file that says that all is there.
    (store.root / "bucket/run/rl/3/commit_success.txt").unlink()
    assert checkpoint.steps(place) == [2]
    checkpoint.save(place, 3, tree | {"step": jnp.int32(7)})
    assert checkpoint.steps(place) == [2, 3]
    assert int(checkpoint.restore(place, tree)[0]["step"]) == 7
