"""The teacher's probabilities, for samplers that score examples."""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes in float64, (N, K)."""
    logits = logits.astype(np.float64)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    return probs / probs.sum(1, keepdims=True)
