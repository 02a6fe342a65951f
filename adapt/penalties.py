"""The penalties L1, L2 and word length × sparsity (AdaPT, section 3.4).

The paper trains on L + α‖W‖₁ + β/2·‖W‖₂² + P. L1 and L2 act as gradient terms, α·sign(W) + β·W, which the kernels add
once the gradient is normalised (`adapt.kernels.Treatment`). P is piecewise constant, so its gradient is zero: it
affects only the reported loss and the strategy. With `l1_by_word_length`, L1 depends on the word length too.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapt.numerics import LONGEST_WORD


def elastic_net(l1_norms: ArrayLike, squared_norms: ArrayLike, l1: ArrayLike, l2: float) -> NDArray[np.float64]:
    """Return Σ_l α_l·‖W_l‖₁ + β/2·‖W_l‖₂², [...].

    Args:
        l1_norms: ‖W‖₁ of each layer, [..., layers].
        squared_norms: ‖W‖₂² of each layer, [..., layers].
        l1: α, one number or [layers].
        l2: β.
    """
    absolute: NDArray[np.float64] = np.add.reduce(np.multiply(l1, l1_norms), axis=-1)
    squares: NDArray[np.float64] = np.add.reduce(squared_norms, axis=-1)
    return absolute + l2 / 2 * squares


def word_length_sparsity(word_length: ArrayLike, nonzero: ArrayLike) -> NDArray[np.float64]:
    """Return P, the mean over layers of WL/32·sp, [...].

    Args:
        word_length: WL in bits, [..., layers].
        nonzero: sp, share of elements of Ŵ that are not zero, 0 to 1, [..., layers].
    """
    products = np.multiply(word_length, nonzero)
    mean: NDArray[np.float64] = np.add.reduce(products, axis=-1) / products.shape[-1]
    return mean / LONGEST_WORD


def l1_by_word_length(l1: float, word_length: ArrayLike) -> NDArray[np.float64]:
    """Return α·WL/32 for each layer, [layers]: the longer a layer's words, the stronger the pull towards zero.

    Unlike P, this penalty has a gradient, so it acts on the weights.
    """
    return l1 * np.asarray(word_length, np.float64) / LONGEST_WORD
