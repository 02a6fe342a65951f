"""The score against the bits of parameters, a curve for each scaling and choice of activations (figures 3 to 6)."""

from matplotlib.figure import Figure

from recipes.common.axes import INK, dress
from recipes.tradeoff.study import Study, Variant

COLOURS = ("#d1742f", "#3b528b", "#1f9e74", "#7a4f9a", "#8a8a8a", "#b03a48")


def draw(study: Study) -> Figure:
    """Draw a point for each variant; float32 is a horizontal line, because its bits are far to the right."""
    figure = Figure(figsize=(6, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[Variant]] = {}
    for variant in study.variants:
        if variant.bits == 32:
            score = variant.score(study.task).mean
            label = f"float32, {variant.scaling}"
            axes.axhline(
                score, color=INK, linewidth=0.8, linestyle=":" if variant.scaling == "width" else "--", label=label
            )
        else:
            curves.setdefault(variant.name, []).append(variant)
    for colour, (name, variants) in zip(COLOURS, sorted(curves.items()), strict=False):
        scores = [variant.score(study.task).mean for variant in variants]
        marker = "s" if name.startswith("width") else "o"
        axes.plot(
            [v.bits for v in variants], scores, color=colour, marker=marker, markersize=5, linewidth=1.4, label=name
        )
    dress(axes, study.title, "bits of parameters, b_p", fontsize=10)
    axes.set_ylabel("accuracy, %" if study.task.score == "accuracy" else study.task.unit, color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure
