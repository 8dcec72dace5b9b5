"""The scheduling agent: action-scoring policy, PPO training, export and numpy inference."""
