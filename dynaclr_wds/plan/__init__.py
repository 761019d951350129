"""What each batch holds and which blocks must be at hand: pure numpy, no file, no clock."""
