// The heat maps: a row for each layer, the steps from left to right.

/** What a map may show: its name, the values [layers][steps] of a run at some steps, how they read, and their scale. */
const QUANTITIES = {
  bits: { name: "word length", unit: "bits", show: String, logarithmic: true, of: (run) => formatsOf(run, "bits", 0) },
  fraction: {
    name: "fraction length",
    unit: "bits",
    show: String,
    of: (run) => formatsOf(run, "fraction", run.map.lowest_fraction),
  },
  zeros: {
    name: "zeros",
    unit: "%",
    show: String,
    of: (run) => ({ step: run.step, values: unpacked(run.zeros, run.layers.length) }),
  },
};

function formatsOf(run, name, offset) {
  const values = unpacked(run.map[name], run.layers.length).map((row) => Array.from(row, (value) => value + offset));
  return { step: run.map.step, values };
}

/** Return the distinct values of a map, in order. */
const distinct = (values) => [...new Set(values.flatMap((row) => [...new Set(row)]))].sort((a, b) => a - b);

/** Make the colours' key: every value that occurs, or some of them. */
function scaleKey(values, paint, quantity) {
  const each = Math.ceil(values.length / 12);
  const shown = values.filter((_, i) => i % each === 0 || i === values.length - 1);
  const swatches = shown.map((value) => {
    const { fill, ink } = paint.get(value);
    return styled(make("li", {}, quantity.show(value)), { background: fill, color: ink });
  });
  return make("ul", { class: "scale", "aria-label": `colours of ${quantity.name} in ${quantity.unit}` }, swatches);
}

/** Make the map of one run. `within` are the values that the colours span; `choose` is called with a layer's index. */
function heatmap(run, quantity, within, choose) {
  const { step, values } = quantity.of(run);
  const toShare = scale(within, quantity.logarithmic);
  const paint = new Map(within.map((value) => [value, colour(toShare(value))]));
  const names = labels(run.layers.map((row) => row.layer));
  const row = names.length <= 12 ? 26 : names.length <= 32 ? 20 : names.length <= 60 ? 15 : 12;
  const [first, end] = [run.map.step[0], run.map.end];
  const canvas = make("canvas", {
    tabindex: 0,
    role: "img",
    "aria-label":
      `Heat map of the ${quantity.name} of ${names.length} layers over steps ${whole(first)} to ${whole(end - 1)}. ` +
      "Arrow keys read it, Enter shows why a layer moved; the last figures are in the table of layers.",
  });
  const axis = make("div", { class: "axis", "aria-hidden": "true" });
  const readout = make("output", { "aria-live": "polite" }, run.map.complete ? "" : sampled(run));
  const labelled = make(
    "ol",
    { class: "names", "aria-hidden": "true" },
    names.map((name, i) => make("li", { title: run.layers[i].layer }, name)),
  );
  const last = (layer) =>
    quantity === QUANTITIES.bits ? bits(run.layers[layer].word_length_last) : quantity.show(values[layer].at(-1));
  const ends = make(
    "ol",
    { class: "ends", "aria-hidden": "true" },
    names.map((_, layer) => make("li", {}, last(layer))),
  );
  const body = make("div", { class: "body" }, labelled, canvas, ends, axis);
  styled(canvas, { height: `${row * names.length}px` });
  styled(body, { "--row": `${row}px`, "--text": `${Math.min(row - 2, 13)}px` });
  const cursor = { layer: 0, at: step.length - 1 };

  function draw() {
    const width = canvas.clientWidth;
    if (!width) return;
    const density = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(width * density), Math.round(row * names.length * density)];
    const pen = canvas.getContext("2d");
    const place = step.map((value) => Math.round(((value - first) / (end - first)) * canvas.width));
    place.push(canvas.width);
    pen.font = `${Math.min(row - 3, 12) * density}px system-ui, sans-serif`;
    [pen.textAlign, pen.textBaseline] = ["center", "middle"];
    const gap = row >= 15 ? density : 0;
    values.forEach((line, layer) => {
      const [top, bottom] = [Math.round(layer * row * density), Math.round((layer + 1) * row * density) - gap];
      for (let from = 0, to; from < line.length; from = to) {
        for (to = from + 1; to < line.length && line[to] === line[from];) to++;
        const { fill, ink } = paint.get(line[from]);
        pen.fillStyle = fill;
        pen.fillRect(place[from], top, place[to] - place[from], bottom - top);
        const text = quantity.show(line[from]);
        if (row >= 15 && place[to] - place[from] > pen.measureText(text).width + 6 * density) {
          pen.fillStyle = ink;
          pen.fillText(text, (place[from] + place[to]) / 2, (top + bottom) / 2 + density * 0.5);
        }
      }
    });
    const marks = ticks(first, end, Math.max(2, Math.min(8, width / 80))).filter(
      (value) => value >= first && Number.isInteger(value),
    );
    axis.replaceChildren(
      ...marks.map((value) =>
        styled(make("span", {}, compact(value)), { left: `${((value - first) / (end - first)) * 100}%` }),
      ),
    );
  }

  function read() {
    const layer = run.layers[cursor.layer].layer;
    const shown = step[cursor.at];
    const formats = quantity === QUANTITIES.zeros ? "" : ` · ${formatAt(run, cursor.layer, cursor.at)}`;
    const zeros = quantity === QUANTITIES.zeros ? ` · ${values[cursor.layer][cursor.at]} % zeros` : "";
    readout.textContent = `${layer} · from step ${whole(shown)}${formats}${zeros}`;
    [...labelled.children].forEach((item, i) => item.classList.toggle("chosen", i === cursor.layer));
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const wanted = first + ((event.clientX - box.left) / box.width) * (end - first);
    cursor.layer = Math.min(Math.max(Math.floor((event.clientY - box.top) / row), 0), names.length - 1);
    cursor.at = Math.max(
      step.findLastIndex((value) => value <= wanted),
      0,
    );
    read();
  }

  function press(event) {
    const line = values[cursor.layer];
    const moves = {
      ArrowUp: () => (cursor.layer = Math.max(cursor.layer - 1, 0)),
      ArrowDown: () => (cursor.layer = Math.min(cursor.layer + 1, names.length - 1)),
      // To the layer's change before or after.
      ArrowLeft: () => {
        while (cursor.at > 0 && line[cursor.at - 1] === line[cursor.at]) cursor.at--;
        cursor.at = Math.max(cursor.at - 1, 0);
      },
      ArrowRight: () => {
        const here = line[cursor.at];
        while (cursor.at < step.length - 1 && line[cursor.at] === here) cursor.at++;
      },
      Enter: () => choose(cursor.layer),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
    read();
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("click", () => choose(cursor.layer));
  canvas.addEventListener("keydown", press);
  new ResizeObserver(draw).observe(canvas);
  const head = make(
    "div",
    { class: "head" },
    make("figcaption", { class: "name" }, run.label),
    scaleKey(within, paint, quantity),
  );
  return make("figure", { class: "map" }, head, body, readout);
}

const formatAt = (run, layer, at) => format(run.formats_at.bits[layer][at], run.formats_at.fraction[layer][at]);

const sampled = (run) =>
  `Formats changed in more steps than fit: every ${whole(run.map.step[1] - run.map.step[0])}th is shown.`;
