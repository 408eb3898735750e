"""Wording, tokenizers, compiled templates, and the reading of replies."""
