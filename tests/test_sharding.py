import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from gp_virl.sharding import (
    ROLLOUT,
    TRAINING,
    along_batch,
    constrain,
    fitting,
    mesh_of,
    spec,
    whole,
)  # fmt: skip
from tests.eight_devices import printed

EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from gp_virl.model.mllama import abstract, build
from gp_virl.sharding import ROLLOUT, mesh_of
from tests.model.models import CONFIG

mesh = mesh_of(data=2, fsdp=2, tensor=2)
tokens = jax.random.randint(jax.random.key(0), (8, 12), 0, 40)
places = jnp.broadcast_to(jnp.arange(12), (8, 12))
graph, whole = build(CONFIG, jax.random.key(1))
run = jax.jit(lambda p: nnx.merge(graph, p).logits(nnx.merge(graph, p).hidden(tokens, places)))
want = run(whole)
for rules in ({}, {"rules": ROLLOUT}):
    _, params = build(CONFIG, jax.random.key(1), mesh, **rules)
    shapes = abstract(CONFIG, mesh, **rules)[1]
    for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding == shape.sharding and leaf.shape == shape.shape
    kernel = params["language_model"]["groups"]["layers"][0]["self_attn"]["q_proj"]["kernel"][...]
    cut = 2 if rules else 4  # tensor alone, or fsdp as well; never the layer axis
    assert kernel.addressable_shards[0].data.size * cut == kernel.size
    assert kernel.addressable_shards[0].data.shape[0] == kernel.shape[0]
    with jax.set_mesh(mesh):
        got = run(params)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert got.sharding.spec[-1] == "tensor"
print("same")
"""


def test_specs_follow_the_rules():
    assert spec("layers", "embed", "heads") == PartitionSpec(None, "fsdp", "tensor")
    assert spec("embed", "mlp", rules=ROLLOUT) == PartitionSpec(None, "tensor")
    assert spec("batch", None, "vocab") == PartitionSpec(("data", "fsdp"), None, "tensor")


def test_activations_lie_alike_under_both_rules():
    differing = {name for name, _ in TRAINING if dict(TRAINING)[name] != dict(ROLLOUT)[name]}
    assert differing == {"embed"} and dict(TRAINING).keys() == dict(ROLLOUT).keys()


def test_mistakes_are_named():
    with pytest.raises(KeyError, match="bacth.*batch"):
        spec("bacth")
    with pytest.raises(ValueError, match="needs 1024 devices"):
        mesh_of(data=1024)
    with pytest.raises(ValueError, match="at least 1"):
        mesh_of(fsdp=0)


class Device:
    """A device of one of several slices, as far as a mesh asks."""

    def __init__(self, number: int, slice_index: int, platform: str = "tpu"):
        self.id, self.slice_index, self.process_index = number, slice_index, slice_index
        self.platform, self.device_kind = platform, "TPU v5 lite"
        self.coords, self.core_on_chip = (number % 2, number // 2 % 2, 0), 0

    def __repr__(self) -> str:
        return f"{self.slice_index}.{self.id}"


def test_slices_share_out_data_alone():
    devices = [Device(number, number // 4) for number in range(8)]
    mesh = mesh_of(data=2, fsdp=2, tensor=2, devices=devices)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == (2, 2, 2)
    for index, copy in enumerate(mesh.devices):
        assert {device.slice_index for device in copy.flat} == {index}
    with pytest.raises(ValueError, match="2 slices; make data a multiple of 2"):
        mesh_of(fsdp=4, tensor=2, devices=devices)


def test_a_copy_of_the_model_may_span_machines_with_gpus():
    """To JAX each machine is a slice."""
    devices = [Device(number, number // 4, "gpu") for number in range(8)]
    mesh = mesh_of(fsdp=2, tensor=4, devices=devices[::-1])
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert mesh.devices.shape == (1, 2, 4)


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    cut = PartitionSpec(("data", "fsdp"), None, "tensor")
    assert fitting(cut, (8, 3, 6), mesh) == cut
    assert fitting(cut, (6, 3, 6), mesh) == PartitionSpec(None, None, "tensor")
    assert fitting(cut, (8, 3, 5), mesh) == PartitionSpec(("data", "fsdp"), None, None)


def test_batches_lie_along_the_axis_asked_for():
    mesh = mesh_of()
    shapes = {"turns": jax.ShapeDtypeStruct((3, 4, 5), "float32"), "count": jnp.int32(3)}
    laid = along_batch(shapes, mesh, 1)
    assert laid["turns"].spec == PartitionSpec(None, ("data", "fsdp"))
    assert laid["count"].spec == whole(mesh).spec == PartitionSpec()


def test_constrain_is_nothing_without_a_mesh_and_a_layout_with_one():
    x = jnp.ones((4, 2))
    assert constrain(x, "batch", "mlp") is x
    with jax.set_mesh(mesh_of()):
        text = jax.jit(lambda x: constrain(x, "batch", "mlp")).lower(x).as_text()
    assert "sharding" in text


def test_a_mesh_of_eight_computes_what_one_device_does():
    assert printed(EIGHT_DEVICES) == "same"
