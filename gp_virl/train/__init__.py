"""Training: supervised fine-tuning and PPO as pure updates of one state."""
