"""Environments: pure functions over arrays, and the words they speak."""
