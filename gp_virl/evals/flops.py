"""Training compute in FLOPs, the x axis of every figure (paper, appendix C.3).

With N parameters, a token costs 6N to train on (forward and backward) and 2N to read or write in
generation (forward only):

    X_SFT = 6N (D_init + D_SFT)
    X_RL  = 6N (D_init + D_RL) + 2N D_buffer,    D_buffer = lambda D_RL

D_init tokens went into the checkpoint both branches start from. D_SFT and D_RL are tokens that
passed through a training step, once for each epoch. D_buffer are the prompt and reply tokens of
all generations. Each generation counts its whole prompt, whether or not a cache saved part of the
work, as the paper does. Images are not counted as tokens, while N includes the vision tower.
"""

# The paper's estimates of lambda, for comparison with its figures; ours is measured.
PAPER_LAMBDA = {"general_points": 6.0, "virl": 5.1}


def sft_flops(parameters: int, init_tokens: int, sft_tokens: int) -> float:
    """X_SFT after `sft_tokens` of supervised fine-tuning; with 0 of them, that of Init itself."""
    return 6.0 * parameters * (init_tokens + sft_tokens)


def rl_flops(parameters: int, init_tokens: int, rl_tokens: int, lam: float) -> float:
    """X_RL after training on `rl_tokens`, with `lam` = D_buffer / D_RL.

    `lam` is `measured_lambda(...)` of the run or an entry of PAPER_LAMBDA.
    """
    return 6.0 * parameters * (init_tokens + rl_tokens) + 2.0 * parameters * lam * rl_tokens


def measured_lambda(prompt_tokens: int, reply_tokens: int, rl_tokens: int) -> float:
    """D_buffer / D_RL of a run from its counts; 0 before anything was trained on.

    Raises ValueError if tokens were trained on that no generation produced.
    """
    buffer_tokens = prompt_tokens + reply_tokens
    if rl_tokens > 0 and buffer_tokens == 0:
        raise ValueError(f"{rl_tokens} tokens were trained on but none were generated or read")
    return buffer_tokens / rl_tokens if rl_tokens else 0.0
