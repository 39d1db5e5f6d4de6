"""Measurements: `make bench` runs them all and prints one table.

Machines are shared and noisy: everything is compared within one run, interleaved, in
CPU time, by minimum or median of many rounds.
"""
