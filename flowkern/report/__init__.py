"""Figures and how they are reported: machine, timing, memory, tables."""
