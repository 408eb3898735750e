"""The compute formulas against numbers worked out by hand."""

import pytest

from gp_virl.evals.flops import PAPER_LAMBDA, measured_lambda, rl_flops, sft_flops


def test_sft_by_hand() -> None:
    assert sft_flops(10, 100, 0) == 6_000
    assert sft_flops(10, 100, 50) == 9_000
    assert sft_flops(11_000_000_000, 10**9, 10**9) == pytest.approx(1.32e20)


def test_rl_by_hand() -> None:
    # 6 * 10 * (100 + 50) to train, 2 * 10 * (4 * 50) to generate
    assert rl_flops(10, 100, 50, 4.0) == 9_000 + 4_000
    assert rl_flops(10, 100, 0, 4.0) == sft_flops(10, 100, 0)


def test_measured_lambda_by_hand() -> None:
    # 300 prompt and 100 reply tokens, then 4 epochs over 200 tokens
    assert measured_lambda(300, 100, 800) == 0.5
    assert rl_flops(10, 0, 800, measured_lambda(300, 100, 800)) == 6 * 10 * 800 + 2 * 10 * 400
    assert measured_lambda(300, 100, 0) == 0.0
    with pytest.raises(ValueError, match="none were generated"):
        measured_lambda(0, 0, 5)


def test_the_papers_lambda_is_at_hand() -> None:
    assert PAPER_LAMBDA == {"general_points": 6.0, "virl": 5.1}
    # With lambda = 6 the buffer costs twice the training: 2 * 6 = 12 against 6.
    assert rl_flops(1, 0, 1, PAPER_LAMBDA["general_points"]) == 18
