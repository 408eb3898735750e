"""Weights and checkpoints to and from disk."""
