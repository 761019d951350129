"""Batches to a trained network and its embeddings: module, losses, encoders, callbacks."""
