"""What lanes look at: an image is encoded once, when it comes into sight."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from gp_virl.envs.api import Task
from gp_virl.model.cache import CrossCache, empty_cross
from gp_virl.model.mllama import Mllama
from gp_virl.types import Context


def blank(model: Mllama, task: Task, scene: PyTree) -> CrossCache | None:
    """Room for one image a lane, none encoded yet; None for a task without images.

    `scene` has the lanes' scenes along its first axis.
    """
    if task.image_token is None:
        return None
    pictures = jax.eval_shape(jax.vmap(task.picture), scene)
    return empty_cross(model.config, pictures.shape[0], model.features(*pictures.shape[1:3]))


def encoded(
    model: Mllama,
    task: Task,
    images: CrossCache | None,
    scene: PyTree,
    context: Context,
    fresh: Bool[Array, "B"],
    together: int,
) -> CrossCache | None:
    """`images` with those of the `fresh` lanes drawn and encoded, `together` at a time.

    A lane's tokens see its image from the first image token of its context on. Lanes that are
    not fresh cost nothing.
    """
    if images is None:
        return None
    count, room = context.tokens.shape
    total, order = fresh.sum(), jnp.argsort(~fresh, stable=True)
    together = min(together, count)

    def some(index, images):
        at = index * together + jnp.arange(together)
        lane = order[jnp.minimum(at, count - 1)]
        pictures = jax.vmap(task.picture)(jax.tree.map(lambda x: x[lane], scene))
        states = model.see(pictures)
        begins = context.tokens[lane] == task.image_token
        since = jnp.where(begins.any(-1), jnp.argmax(begins, axis=-1), room)
        real = jnp.ones(states.shape[:2], bool)
        return images.put(jnp.where(at < total, lane, count), model.look(states, real, since))

    return jax.lax.fori_loop(0, -(-total // together), some, images)


def changed(before: PyTree, after: PyTree) -> Bool[Array, "B"]:
    """True for lanes whose scene isn't what it was; scenes have lanes along their first axis."""
    differs = [
        (old != new).reshape(old.shape[0], -1).any(-1)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    return jnp.any(jnp.stack(differs), axis=0)
