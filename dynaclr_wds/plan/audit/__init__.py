"""Says what came of a plan: coverage, composition, mixing and bytes, counted from the batches themselves."""
