"""What the demo and the benchmarks share to report figures: machine, timing, charts, page."""
