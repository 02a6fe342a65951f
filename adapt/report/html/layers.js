// The table of layers: a row for each layer of each run, sorted by any column.

/** Whether a figure is known of any layer. */
const someRow = (runs, value) => runs.some((run) => run.layers.some((row) => value(row) != null));

/** Return the groups of columns: [name, columns], each column [head, value of a row, how it reads, what it means]. */
function layerColumns(runs) {
  const inFile = ["in file", (row) => row.packed_bytes, whole, "in the packed file, entropy-coded where that is smaller"];
  const cost = ["cost", (row) => row.modelled_share, percent, "share of ops·sp·WL, the modelled cost of inference"];
  const own = (name) => [name.replaceAll("_", " "), (row) => row.run.own[name]?.[row.index], short, `column ${name}`];
  const groups = [
    ["", several ? [["run", (row) => row.run.label, String, ""]] : []],
    ["", [["weights", (row) => row.weights, whole, "number of weights"]]],
    [
      "word length, bits",
      [
        ["first", (row) => row.word_length_first, bits, "in the first row of the trace"],
        ["mean", (row) => row.word_length_mean, decimal, "mean over the trace"],
        ["last", (row) => row.word_length_last, bits, "in the last row; exact where widths were learned by channel"],
        ["fraction", (row) => row.fraction_length_last, whole, "fraction length in the last row"],
      ],
    ],
    [
      "zeros",
      [
        ["mean", (row) => 1 - row.nonzero_mean, percent, "share of weights that are zero, mean over the trace"],
        ["last", (row) => 1 - row.nonzero_last, percent, "share of weights that are zero in the last row"],
      ],
    ],
    [
      "bytes",
      [
        ["packed", (row) => row.bytes, whole, "words packed without gaps"],
        ...(runs.some((run) => run.packed_file) ? [inFile] : []),
        ["float32", (row) => row.float32_bytes, whole, "the same weights in float32"],
      ],
    ],
    [
      "modelled",
      [
        ...(runs.some(isCosted) ? [cost] : []),
        ["speedup", (row) => row.modelled_speedup, times, "32/(sp·WL), modelled"],
      ],
    ],
    [
      "moves",
      [
        ["all", (row) => row.moves, whole, "changes of the format"],
        ["up", (row) => row.raised, whole, "to more bits"],
        ["down", (row) => row.lowered, whole, "to fewer bits"],
        ["last at", (row) => row.last_move, whole, "step of the last move"],
        ["strategy", (row) => row.strategy, known(String), "AdaPT's push-up strategy at the last move"],
      ].filter(([head, value]) => head !== "strategy" || someRow(runs, value)),
    ],
    [
      "medians at moves",
      [
        ["Δs up", (row) => row.diversity_raised, short, "gradient diversity of windows that ended with more bits"],
        ["Δs down", (row) => row.diversity_lowered, short, "gradient diversity of windows that ended with fewer bits"],
        ["divergence", (row) => row.divergence, short, "bits of divergence that push-down gave up"],
        ["rounding cost", (row) => row.rounding_cost, short, "by how much rounding the layer raised the loss"],
      ].filter(([, value]) => someRow(runs, value)),
    ],
    ["policy, last", [...new Set(runs.flatMap((run) => Object.keys(run.own)))].map(own)],
  ];
  return groups.filter(([, columns]) => columns.length);
}

/** Make the table of all layers of all runs, which sorts by any column. `choose` is called with a run and an index. */
function layerTable(runs, choose) {
  const groups = layerColumns(runs);
  const columns = groups.flatMap(([group, found]) => found.map((column, i) => [...column, group !== "" && i === 0]));
  const kind = (head, begins) => (head === "run" ? "text" : begins && "begins");
  const largest = Math.max(...runs.flatMap((run) => run.layers.map((row) => row.modelled_share ?? 0)));

  const cell = (row) => ([head, value, show, , begins]) => {
    const share = head === "cost" && row.modelled_share;
    const bar = share ? styled(make("span", { class: "bar" }), { width: `${(100 * share) / largest}%` }) : null;
    return make("td", { class: kind(head, begins) }, show(value(row)), bar);
  };
  const records = runs.flatMap((run) => {
    const names = labels(run.layers.map((row) => row.layer));
    return run.layers.map((layer, index) => {
      const row = { ...layer, run, index };
      const button = make("button", { type: "button", click: () => choose(run, index) }, names[index]);
      const head = make("th", { scope: "row", title: layer.layer }, button);
      return { row, element: make("tr", {}, head, columns.map(cell(row))) };
    });
  });
  const body = make("tbody", {}, records.map((record) => record.element));

  const sortable = ([head, value, , about, begins]) => {
    const heading = make("th", { scope: "col", class: kind(head, begins), title: about });
    const sort = () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = records.map((record) => [value(record.row), record.element]);
      body.append(...keyed.sort(([a], [b]) => compare(a, b, down)).map(([, element]) => element));
    };
    heading.append(make("button", { type: "button", click: sort }, head));
    return heading;
  };
  const heads = [["layer", (row) => row.layer], ...columns].map(sortable);
  const above = groups.map(([group, found]) =>
    make("th", group ? { scope: "colgroup", colspan: found.length, class: "begins" } : { "aria-hidden": "true" }, group),
  );
  const first = make("tr", {}, make("th", { "aria-hidden": "true" }), above);
  const table = make("table", { class: "layers" }, make("thead", { class: "grouped" }, first, make("tr", {}, heads)), body);

  const filter = make("input", { type: "search", placeholder: "part of a name" });
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const { row, element } of records) element.hidden = !row.layer.toLowerCase().includes(wanted);
  });
  const controls = make("div", { class: "controls" }, make("label", {}, "Show layers with ", filter));
  return [controls, scrolling(table, "Figures of every layer")];
}

/** Order two values, numbers before texts; what is not known comes last, whichever way. */
function compare(a, b, down) {
  if (a == null || b == null) return (a == null) - (b == null);
  const texts = (typeof a === "string") - (typeof b === "string");
  const order = texts || (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  return down ? -order : order;
}
