"""Expert dialogues (TFDS builders) and the pipeline that turns them into batches (grain)."""
