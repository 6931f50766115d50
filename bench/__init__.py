"""Benchmarks of flowkern against its peers, torch.compile and the physical limit."""
