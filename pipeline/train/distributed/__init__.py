"""Training in several processes: the model, and training checkpoints in shards."""
