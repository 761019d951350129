"""Decides what must be resident when, so that batches keep their laws in bounded memory."""
