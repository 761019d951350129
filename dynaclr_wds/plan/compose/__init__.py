"""Decides what a batch holds: quotas, queues, rounds, distinct lineages, focal windows, positives and negatives."""
