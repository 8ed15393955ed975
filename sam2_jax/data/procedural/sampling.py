"""Random numbers and choices."""

import bisect
import itertools
import math

import numpy as np

Rng = np.random.Generator


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draws a number whose logarithm is uniform."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def pick(rng: Rng, **weights: float) -> str:
    """Draws one of the names; several times faster than `rng.choice`."""
    names, edges = list(weights), list(itertools.accumulate(weights.values()))
    return names[bisect.bisect(edges, rng.random() * edges[-1], hi=len(names) - 1)]


def chances(rng: Rng, *probabilities: float) -> list[bool]:
    """Draws whether each of several things happens, given how probable it is."""
    return (rng.random(len(probabilities)) < probabilities).tolist()
