"""Lightning's callbacks that average weights, which its releases before 2.6 lack."""

import lightning.pytorch.callbacks
import pytest

WeightAveraging = getattr(lightning.pytorch.callbacks, "WeightAveraging", None)
EMAWeightAveraging = getattr(lightning.pytorch.callbacks, "EMAWeightAveraging", None)
needs_averaging = pytest.mark.skipif(EMAWeightAveraging is None, reason="Lightning averages weights from 2.6 on")
