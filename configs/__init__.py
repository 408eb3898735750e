"""Experiment configurations; pass one as --config=configs/NAME.py:ARG."""
