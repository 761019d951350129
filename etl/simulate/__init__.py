"""Options to simulated plates and tracks: designs experiments, moves cells, draws, tracks and writes them."""
