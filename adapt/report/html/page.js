// The page: what made the runs, their curves, maps, sizes and tables, in the order in which one asks.

const { version, runs } = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

runs.forEach((run, index) => {
  run.index = index;
  run.formats_at = {
    bits: formatsOf(run, "bits", 0).values,
    fraction: formatsOf(run, "fraction", run.map.lowest_fraction).values,
  };
});
const several = runs.length > 1;

/** Whether the multiply-adds of every layer are known. */
const isCosted = (run) =>
  Boolean(run.totals.modelled_inference_speedup) && run.layers.every((row) => row.modelled_share != null);

/** Add a section to the page, unless it would be empty. */
function section(title, about, ...parts) {
  const content = parts.flat(Infinity);
  const note = about ? make("p", { class: "note" }, about) : null;
  const id = title.toLowerCase().replaceAll(" ", "-");
  if (content.length) page.append(make("section", { id }, make("h2", {}, title), note, content));
}

/** Under a head for each run, unless there is only one. */
const perRun = (chosen, show) =>
  chosen.flatMap((run) => [several ? make("h3", { class: "name" }, run.label) : null, show(run)]);

/** The shares of the push-up strategies as text: "min 12 %, max 88 %". */
const strategies = known((shares) =>
  Object.entries(shares)
    .filter(([, share]) => share > 0)
    .map(([name, share]) => `${name} ${whole(100 * share)} %`)
    .join(", "),
);

/** Make the tables of what came out of the runs and of what made them. */
function comparison() {
  const row = (title, name, show) => [title, runs.map((run) => show(run.totals[name]))];
  const present = (rows) => rows.filter(([, texts]) => texts.some((text) => text !== UNKNOWN));
  const made = [...new Set(runs.flatMap((run) => run.made.map(([name]) => name)))];
  const logged = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))];
  const settings = made.map((name) => [
    name,
    runs.map((run) => run.made.find(([key]) => key === name)?.[1] ?? UNKNOWN),
  ]);
  const results = [
    ["Last logged", logged.map((name) => [name, runs.map((run) => short(run.metrics[name]))])],
    [
      "What came out",
      present([
        row("last step", "last_step", whole),
        row("layers", "layers", whole),
        row("weights", "weights", whole),
        row("mean word length, bits", "mean_word_length", decimal),
        row("mean over the run, bits", "run_mean_word_length", decimal),
        ["zeros", runs.map((run) => percent(1 - run.totals.nonzero))],
        row("moves", "moves", whole),
        row("push-up strategy, share of steps", "strategies", strategies),
        row("modelled inference speedup", "modelled_inference_speedup", times),
        row("modelled training memory, of float32", "memory_ratio", times),
      ]),
    ],
  ];
  return make("div", { class: "beside" }, facts(runs, results, "What came out"), make("div", {}, madeBy(settings)));
}

/** Make the table of the settings in which the runs differ, and fold away what they share. */
function madeBy(settings) {
  const isShared = ([, texts]) => new Set(texts).size === 1;
  const [shared, differing] = [settings.filter(isShared), settings.filter((row) => !isShared(row))];
  const count = `${shared.length} ${shared.length === 1 ? "setting" : "settings"} that`;
  const said = several ? `${count} the runs share` : `${count} made the run`;
  const common = shared.map(([name, texts]) => [name, texts.slice(0, 1)]);
  const heads = several ? [{ label: "all runs" }] : runs;
  return [
    differing.length ? facts(runs, [["What made it", differing]], "Settings in which the runs differ") : null,
    shared.length ? make("details", {}, make("summary", {}, said), facts(heads, [["", common]], said)) : null,
  ];
}

/** Make the charts of what was logged, and of the whole network's word length and zeros. */
function curves() {
  const of = (value, held) =>
    runs
      .map((run) => ({ run: run.index, label: several ? run.label : "", ...value(run) }))
      .filter((curve) => curve.step);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  const logged = names.map((name) =>
    chart(
      name,
      of((run) => (run.curves[name] ? { step: run.curves[name][0], value: run.curves[name][1] } : {})),
      short,
    ),
  );
  return make(
    "div",
    { class: "charts" },
    logged,
    chart(
      "mean word length, bits",
      of((run) => ({ step: run.step, value: run.mean })),
      decimal,
      true,
    ),
    chart(
      "zeros, %",
      of((run) => ({ step: run.step, value: run.mean_zeros.map((share) => 100 * share) })),
      (value) => value.toFixed(1),
    ),
  );
}

/** Make the heat maps and the controls that say what they show. */
function maps(choose) {
  const place = make("div");
  const shared = make("input", { type: "checkbox", change: draw });
  const choices = Object.entries(QUANTITIES).map(([key, { name }], i) =>
    make(
      "label",
      {},
      make("input", { type: "radio", name: "quantity", value: key, checked: i === 0, change: draw }),
      ` ${name}`,
    ),
  );
  const controls = make(
    "div",
    { class: "controls" },
    make("fieldset", {}, make("legend", {}, "Show"), choices),
    several ? make("label", {}, shared, " the same colours for all runs") : null,
  );
  function draw() {
    const quantity = QUANTITIES[controls.querySelector("input[name=quantity]:checked").value];
    const values = runs.map((run) => distinct(quantity.of(run).values));
    const all = distinct(values);
    place.replaceChildren(
      ...runs.map((run, i) => heatmap(run, quantity, shared.checked ? all : values[i], (layer) => choose(run, layer))),
    );
  }
  draw();
  return [controls, place];
}

/** Make the bars of the weights' bytes, on one scale for all runs. */
function sizes() {
  const largest = Math.max(...runs.map((run) => run.totals.float32_bytes));
  return perRun(runs, (run) => {
    const { bytes, packed_bytes: stored, float32_bytes: before } = run.totals;
    const bars = [
      ["float32", before],
      ["packed", bytes],
      ...(stored == null ? [] : [[`in ${run.packed_file}`, stored]]),
    ];
    return make(
      "dl",
      { class: "sizes" },
      bars.map(([name, size]) => [
        make("dt", {}, name),
        make(
          "dd",
          { class: "track", "aria-hidden": "true" },
          styled(make("span", { class: "fill" }), {
            width: `${(100 * size) / largest}%`,
            "--run": `var(--run-${run.index % 6})`,
          }),
        ),
        make("dd", {}, `${whole(size)} bytes${size < before ? `, ${times(before / size)} smaller` : ""}`),
      ]),
    );
  });
}

/** Make a chart of what each layer costs, as a share of what the whole network costs in float32. */
function costs(chosen) {
  const values = chosen.map((run) => {
    const whole = 100 / run.totals.modelled_inference_speedup;
    return run.layers.map((row) => row.modelled_share * whole);
  });
  const high = 1.05 * Math.max(...values.flat(), 1e-6);
  const drawn = chosen.map((run, i) => {
    const names = labels(run.layers.map((row) => row.layer));
    const said = `${several ? `${run.label}: ` : ""}${values[i].reduce((a, b) => a + b).toFixed(1)} % of float32`;
    return make("figure", {}, make("figcaption", { class: "name" }, said), columns(run, names, values[i], high));
  });
  return make("div", { class: "charts wide" }, drawn);
}

/** Make the table of moves and the choice of the layer that it is about; also a function that chooses one. */
function moves() {
  const place = make("div", { "aria-live": "polite" });
  const options = runs.map((run) => {
    const names = labels(run.layers.map((row) => row.layer));
    const entries = names.map((name, index) => make("option", { value: `${run.index}/${index}` }, name));
    return several ? make("optgroup", { label: run.label }, entries) : entries;
  });
  const select = make("select", { change: show }, options);
  function show() {
    const [run, layer] = select.value.split("/").map(Number);
    place.replaceChildren(...moveTable(runs[run], layer));
  }
  const parts = [make("div", { class: "controls" }, make("label", {}, "Layer ", select)), place];
  const busiest = runs[0].layers.reduce(
    (best, row, index) => (row.moves > runs[0].layers[best].moves ? index : best),
    0,
  );
  const choose = (run, layer) => {
    select.value = `${run.index}/${layer}`;
    show();
    parts[0].scrollIntoView({ block: "center" });
    select.focus({ preventScroll: true });
  };
  select.value = `0/${busiest}`;
  show();
  return [parts, choose];
}

const [moveParts, chooseLayer] = moves();
const others = (run) => Object.keys(run.formats).filter((name) => !run.layers.some((row) => row.layer === name));
const costed = runs.filter(isCosted);

document.title = `adapt report: ${runs.map((run) => run.label).join(", ")}`;
document.getElementById("lead").textContent = several ? `${runs.length} runs` : runs[0].label;
document.getElementById("foot").textContent =
  `Made by adapt ${version}. Figures called modelled come from a cost model; nothing here was timed.`;
page.replaceChildren();
section(several ? "The runs" : "The run", several ? "What differs is marked ≠." : "", comparison());
section("Over the steps", "", curves());
section(
  "Formats of every layer",
  "Steps run from left to right, a layer to a row, its last value at the end. Pale is few, dark is many. Point at a " +
    "map, or use the arrow keys, to read it; click for the reasons of a layer's moves.",
  maps(chooseLayer),
);
section(
  "Why layers moved",
  "AdaPT: push-down takes the fewest bits that keep the divergence (eq. 1) small; push-up adds bits by the strategy, " +
    "“max” most of all, and by the gradients' diversity Δs in the window that ended with the move (eq. 3): 1 if all " +
    "point one way, ∞ if they cancel. Compact: rounding cost is what rounding the layer added to the loss, to first " +
    "order, in that window; all layers' costs together decide how many bits there are, and a bit goes where it saves " +
    "most. Further columns are the policy's own.",
  moveParts,
);
section(
  "Size of the weights",
  "Packed: each layer's words in the last row, without gaps. Biases, norms and headers are not counted." +
    (runs.some((run) => run.packed_file)
      ? " A packed file stores a layer's words entropy-coded where that is smaller; it may hold an earlier checkpoint, " +
        "with other formats than the last row."
      : ""),
  sizes(),
);
section(
  "Modelled cost of inference by layer",
  "ops·sp·WL: multiply-adds times the share of weights that are not zero times bits, of the last row. float32 is " +
    "100 %. Modelled, not measured.",
  costed.length ? costs(costed) : [],
);
section(
  "Layers",
  "A click on a head sorts by it, a second one the other way; a click on a layer shows its moves.",
  layerTable(runs, chooseLayer),
);
section(
  "Learned widths by channel",
  "The log's exact figures; maps and curves round a layer's mean to whole bits.",
  perRun(runs.filter((run) => run.channels.length), channelTable),
);
section("Phases of learning", "", perRun(runs.filter((run) => run.phases.length), phaseTable));
section(
  "Activations, biases and norms",
  "",
  perRun(runs.filter((run) => others(run).length), (run) => formatTable(run, others(run))),
);
