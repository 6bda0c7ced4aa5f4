"""Weights that lie elsewhere than where a model computes, and come for the time of a forward."""
