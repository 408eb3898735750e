"""Figures and pages from what a run wrote; no JAX here."""
