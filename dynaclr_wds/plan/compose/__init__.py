"""What a batch holds: quotas, queues, rounds, lineages kept apart, focal windows, positives and negatives."""
