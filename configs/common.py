"""What the studies share: one ConfigDict with every field of gp_virl/config.py."""

from ml_collections import ConfigDict

SCALES = ("tiny", "small", "11b")


def study(task: str, scale: str) -> ConfigDict:
    """The base study of a task at a scale; raises ValueError for an unknown scale."""
    if scale not in SCALES:
        raise ValueError(f"config argument: given {scale!r}, allowed: {', '.join(SCALES)}")
    config = ConfigDict(dict(task=task, scale=scale, seed=0))
    config.env = dict(
        rule="face_ten",
        target=24,
        suits="all",
        require_face=False,
        max_turns=5,
        hands="all",
        held_out=0.1,
        seed=0,
        modality="text",
        image_size=96,
        jitter_shift=0.0,
        jitter_scale=0.0,
        recognition="replaces",
        rewards=dict(
            solved=5.0,
            wrong_value=-1.0,
            wrong_numbers=-2.0,
            illegal=-3.0,
            unrecognized=-1.5,
            exceeded=-1.0,
        ),
    )
    config.ood = ConfigDict()  # splits by name, made by `variant`
    config.text = dict(tokenizer="tiny", wording="brief")
    config.model = dict(size=scale, dtype="float32", remat=False, attention="auto")
    config.data = dict(
        file="",
        examples=40_000,
        max_solutions=1,
        ood_share=0.0,
        suboptimal=0.0,
        max_errors=4,
        base_suits="all",
        seed=0,
    )
    sft = dict(
        steps=1000,
        batch_size=32,
        microbatch=32,
        length=256,
        learning_rate=1e-3,
        schedule="constant",
        warmup=50,
        final_share=0.0,
        weight_decay=0.01,
        beta2=0.99,
        clip_norm=1.0,
        moments="float32",
        pictures=3,
        frozen="none",
    )
    config.base = dict(sft)
    config.sft = dict(sft)
    config.sft_matched = dict(sft)
    config.rollout = dict(
        lanes=128,
        turns=5,
        reply_length=35,
        reply_bytes=256,
        context=256,
        chunk=32,
        images=64,
        temperature=1.0,
        top_p=1.0,
    )
    config.ppo = dict(
        updates=20,
        epochs=4,
        minibatches=2,
        microbatch=32,
        learning_rate=1e-6,
        schedule="constant",
        warmup=0,
        final_share=0.0,
        beta2=0.99,
        clip_norm=1.0,
        value_learning_rate=1e-5,
        value_warmup=0,
        clip=0.1,
        value_clip=0.1,
        value_coef=0.5,
        value_shapes_decoder=True,
        entropy_coef=0.0,
        kl_coef=0.0,
        kl_logged=True,
        discount=0.9,
        lam=0.95,
        ratio_level="turn",
        thought_coef=0.5,
        reward_scale=1.0,
        moments="float32",
        pictures=2,
        frozen="none",
    )
    config.eval = dict(
        hands=2048, curve_hands=512, lanes=256, points=6, seed=0, transcripts=32, lam="measured"
    )
    config.mesh = dict(data=0, fsdp=1, tensor=1)
    return config


def variant(env: ConfigDict, **changes) -> ConfigDict:
    """An out-of-distribution split: `env` as it will be after overrides, with some changes."""
    same = {name: env.get_ref(name) for name in env if name != "rewards"}
    return ConfigDict(same | changes)
