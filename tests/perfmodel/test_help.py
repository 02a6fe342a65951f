import pydoc

import adapt.perfmodel


def test_signatures_name_their_types_instead_of_expanding_them():
    text = pydoc.render_doc(adapt.perfmodel, renderer=pydoc.plaintext)
    assert "inference_speedup(operations: Operations, word_length: ArrayLike, nonzero: ArrayLike) -> float" in text
    assert "numpy._typing" not in text
