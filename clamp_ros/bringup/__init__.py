"""Starts a whole system: the graph of nodes as data, the runner behind `clamp up`, and the demonstration."""
