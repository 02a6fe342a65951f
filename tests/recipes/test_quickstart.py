import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adapt
from recipes.quickstart.__main__ import main

METHODS = ("float32", "compact", "paper")


def test_both_ways_train_and_agree(tmp_path, capsys):
    threads = torch.get_num_threads()
    main(["--epochs", "2", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(METHODS)}
    assert list(rows) == [f"{method}-{way}" for method in METHODS for way in ("plain", "lightning")]
    for method in METHODS:
        # All but the seconds: the same weights give the same figures.
        assert rows[f"{method}-plain"][:-1] == rows[f"{method}-lightning"][:-1]
        assert float(rows[f"{method}-plain"][0]) > 0.9
    assert "the same in every step" in out

    by_hand, by_lightning = (
        adapt.Trace.load(tmp_path / f"compact-{way}" / "trace.npz") for way in ("plain", "lightning")
    )
    assert by_hand.layers == by_lightning.layers
    assert len(by_hand) == 2 * (1437 // 32)
    for field in ("word_length", "fraction_length", "nonzero", "lookback", "resolution", "diversity", "divergence"):
        assert np.array_equal(getattr(by_hand, field), getattr(by_lightning, field), equal_nan=True), field

    for name in ("word_length_heatmap.png", "timeline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for way in ("plain", "lightning"):
        tags = EventAccumulator(str(tmp_path / f"paper-{way}")).Reload().Tags()
        assert "adapt_layers/word_length/model.0.weight" in tags["scalars"]
        assert "adapt/timeline" in tags["images"]
