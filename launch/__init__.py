"""Programs: python -m launch.NAME."""

import os

# transformers is here for tokenizers and processors; it need not say that torch is absent.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
