"""What a model is: a folder on disk, a network, and something that runs it."""
