"""The story of a night: list, find the new ones, read, decode, classify, save."""
