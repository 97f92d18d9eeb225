"""Samples to batches: images decoded once, words as ids, samples packed without padding."""
