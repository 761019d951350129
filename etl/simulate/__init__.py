"""Parts of the simulator: design, cells, rendering, tracking, writing (arrow: options → plates and tracks)."""
