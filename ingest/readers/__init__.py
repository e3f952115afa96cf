"""From a model's name to what its heads are: checkpoints, weights per head, attention patterns."""
