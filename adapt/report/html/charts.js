// Curves of several runs over the steps, and columns of a run's layers. Each run has a colour and a pattern of dashes, so
// that its curve is known without colours too.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 1 2"];
const strokeOf = (run) => ({
  stroke: `var(--run-${run % 6})`,
  "stroke-dasharray": DASHES[(run + Math.floor(run / 6)) % 6],
});

/** The sign of a run in a key. */
function sign(run) {
  const line = styled(make("line", { x1: 0, y1: 5, x2: 26, y2: 5, "stroke-width": 2.5 }), strokeOf(run));
  return make("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, line);
}

/**
 * Draw curves [{run, label, step, value}] and write down their last values; `held` curves keep each value until the next
 * step. Return null where no curve has two points: the tables have single ones.
 */
function chart(title, curves, show, held = false) {
  const [width, height, left, right, top, bottom] = [420, 190, 46, 10, 8, 22];
  const sound = curves
    .map((curve) => ({ ...curve, points: pairs(curve.step, curve.value) }))
    .filter((c) => c.points.length);
  if (!sound.some((curve) => curve.points.length > 1)) return null;
  const steps = sound.flatMap((curve) => [curve.points[0][0], curve.points.at(-1)[0]]);
  const values = sound.flatMap((curve) => curve.points.map((point) => point[1]));
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  [low, high] = [low >= 0 ? Math.max(low - margin, 0) : low - margin, high + margin];
  const x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const text = (at, down, anchor, content) => make("text", { x: at, y: down, "text-anchor": anchor }, content);
  const across = ticks(first, last, 5).filter((step) => step >= first && Number.isInteger(step));
  const drawing = [
    ...ticks(low, high, 4).flatMap((value) => [
      make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      text(left - 6, y(value) + 4, "end", short(value)),
    ]),
    ...across.map((step) => text(Math.min(x(step), width - 16), height - 5, "middle", compact(step))),
    ...sound.map((curve) => {
      const line = curve.points
        .map(([step, value], i) => {
          const place = `${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
          return i === 0 ? `M${place}` : held ? `H${x(step).toFixed(1)}V${y(value).toFixed(1)}` : `L${place}`;
        })
        .join("");
      const dash = curve.points.length === 1 ? "h6" : ""; // or a single point would not be seen
      return styled(make("path", { class: "curve", d: line + dash }), strokeOf(curve.run));
    }),
  ];
  const ends = sound.map((curve) => `${curve.label} ${show(curve.points.at(-1)[1])}`);
  const about = `${title} over steps ${whole(first)} to ${whole(last)}. Last values: ${ends.join("; ")}`;
  return make(
    "figure",
    {},
    make("figcaption", {}, title),
    make(
      "ul",
      { class: "key" },
      sound.map((curve, i) => make("li", {}, sign(curve.run), ends[i])),
    ),
    make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about }, drawing),
  );
}

/** Draw a column for each layer: what it adds to a modelled cost, in percent, on an axis up to `high`. */
function columns(run, names, values, high) {
  const [width, height, left, right, top, bottom] = [560, 170, 56, 6, 12, 22];
  const each = (width - left - right) / values.length;
  const y = (value) => top + ((high - value) / high) * (height - top - bottom);
  const bars = values.map((value, i) => {
    const gap = each > 6 ? each * 0.15 : 0;
    const place = {
      x: left + i * each + gap / 2,
      width: Math.max(each - gap, 0.5),
      y: y(value),
      height: Math.max(y(0) - y(value), 0.5),
    };
    return styled(
      make("rect", { class: "column", ...place }, make("title", {}, `${names[i]}: ${value.toFixed(2)} %`)),
      { "--run": `var(--run-${run.index % 6})` },
    );
  });
  const grid = ticks(0, high, 4).flatMap((value) => [
    make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
    make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, `${short(value)} %`),
  ]);
  const fits = each > 7 * Math.max(...names.map((name) => name.length));
  const marks = names.map((name, i) =>
    fits || i === 0 || i === names.length - 1
      ? make(
          "text",
          {
            x: fits ? left + (i + 0.5) * each : i ? width - right : left,
            y: height - 4,
            "text-anchor": fits ? "middle" : i ? "end" : "start",
          },
          fits ? name : `layer ${i + 1}`,
        )
      : null,
  );
  const largest = values
    .map((value, i) => [value, names[i]])
    .sort((a, b) => b[0] - a[0])
    .slice(0, 3)
    .map(([value, name]) => `${name} ${value.toFixed(1)} %`);
  const about = `Modelled cost of ${names.length} layers, the largest: ${largest.join(", ")}`;
  return make(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about },
    grid,
    bars,
    marks,
  );
}

const pairs = (steps, values) =>
  steps.map((step, i) => [step, values[i]]).filter((pair) => pair[0] != null && pair[1] != null);
