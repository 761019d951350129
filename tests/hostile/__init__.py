"""Shard sets as an attacker would make them: mutations by seed, forged checksums, and what may come of reading them."""
