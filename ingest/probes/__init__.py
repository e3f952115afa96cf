"""What models are shown and asked: token sequences, texts and relations, each with a hash."""
