"""What a policy scores, and what the score cost."""
