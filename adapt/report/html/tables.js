// Tables: of the runs, of the layers, of the moves, of the learned widths, and of the formats.

const scrolling = (table, label) => make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);

/** Make a table of texts; the first column heads the rows. */
function plainTable(heads, rows, label) {
  const head = make("tr", {}, heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((row) => make("tr", {}, row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, cell))));
  return scrolling(make("table", {}, make("thead", {}, head), make("tbody", {}, body)), label);
}

/** Make the table that compares runs: groups [[name, [[name, texts by run]…]]…]. What differs is marked ≠. */
function facts(runs, groups, label) {
  const head = make("tr", {}, make("th", { scope: "col" }, ""), runs.map((run) => make("th", { scope: "col", class: "text name" }, run.label)));
  const bodies = groups
    .filter(([, rows]) => rows.length)
    .map(([name, rows]) =>
      make(
        "tbody",
        {},
        make("tr", {}, make("th", { scope: "rowgroup", colspan: runs.length + 1 }, name)),
        rows.map(([title, texts]) => {
          const differs = new Set(texts).size > 1;
          return make("tr", {}, make("th", { scope: "row", class: differs && "differs" }, title), texts.map((text) => make("td", {}, text)));
        }),
      ),
    );
  return scrolling(make("table", { class: "facts" }, make("thead", {}, head), bodies), label);
}

/** The columns of the table of layers: [group, head, value of a row, how it reads, what it means]. */
function layerColumns(runs) {
  const packed = runs.some((run) => run.packed_file);
  const shares = runs.some((run) => run.layers.some((row) => row.modelled_share != null));
  const own = [...new Set(runs.flatMap((run) => Object.keys(run.own)))];
  return [
    ["", "layer", (row) => row.layer, null, ""],
    ...(runs.length > 1 ? [["", "run", (row) => row.run.label, String, ""]] : []),
    ["", "weights", (row) => row.weights, whole, "number of weights"],
    ["word length, bits", "first", (row) => row.word_length_first, bits, "in the first row of the trace"],
    ["word length, bits", "mean", (row) => row.word_length_mean, decimal, "mean over the trace"],
    ["word length, bits", "last", (row) => row.word_length_last, bits, "in the last row; exact where widths were learned by channel"],
    ["word length, bits", "fraction", (row) => row.fraction_length_last, whole, "fraction length in the last row"],
    ["zeros", "mean", (row) => 1 - row.nonzero_mean, percent, "share of weights that are zero, mean over the trace"],
    ["zeros", "last", (row) => 1 - row.nonzero_last, percent, "share of weights that are zero in the last row"],
    ["bytes", "packed", (row) => row.bytes, whole, "words packed without gaps"],
    ...(packed ? [["bytes", "in file", (row) => row.packed_bytes, whole, "in the packed file, entropy-coded where that is smaller"]] : []),
    ["bytes", "float32", (row) => row.float32_bytes, whole, "the same weights in float32"],
    ...(shares ? [["modelled", "cost", (row) => row.modelled_share, percent, "share of ops·sp·WL, the modelled cost of inference"]] : []),
    ["modelled", "speedup", (row) => row.modelled_speedup, times, "32/(sp·WL), modelled"],
    ["moves", "all", (row) => row.moves, whole, "changes of the format"],
    ["moves", "up", (row) => row.raised, whole, "to more bits"],
    ["moves", "down", (row) => row.lowered, whole, "to fewer bits"],
    ["moves", "last at", (row) => row.last_move, whole, "step of the last move"],
    ["why", "Δs up", (row) => row.diversity_raised, short, "median gradient diversity of windows that ended with more bits"],
    ["why", "Δs down", (row) => row.diversity_lowered, short, "median gradient diversity of windows that ended with fewer bits"],
    ["why", "divergence", (row) => row.divergence, short, "median bits of divergence that push-down gave up at a move"],
    ...own.map((name) => ["policy, last", name.replaceAll("_", " "), (row) => row.run.own[name]?.[row.index], short, `column ${name} of the policy`]),
  ];
}

/** Make the table of all layers of all runs, which sorts by any column. `choose` is called with a run and an index. */
function layerTable(runs, choose) {
  const columns = layerColumns(runs);
  const begins = columns.map(([group], i) => i > 0 && group !== columns[i - 1][0]);
  const largest = Math.max(...runs.flatMap((run) => run.layers.map((row) => row.modelled_share ?? 0)), 1e-9);
  const records = runs.flatMap((run) => {
    const names = labels(run.layers.map((row) => row.layer));
    return run.layers.map((layer, index) => {
      const row = { ...layer, run, index };
      const cells = columns.map(([, head, value, show], i) => {
        if (i === 0) {
          const button = make("button", { type: "button", title: layer.layer, click: () => choose(run, index) }, names[index]);
          return make("th", { scope: "row", title: layer.layer }, button);
        }
        const bar = head === "cost" && row.modelled_share != null;
        const width = { width: `${(100 * row.modelled_share) / largest}%` };
        const text = head === "run";
        return make("td", { class: [begins[i] && "begins", text && "text"].filter(Boolean).join(" ") || null }, show(value(row)), bar ? styled(make("span", { class: "bar" }), width) : null);
      });
      return { row, element: make("tr", {}, cells) };
    });
  });
  const body = make("tbody", {}, records.map((record) => record.element));
  const heads = columns.map(([, head, value, , about], i) => {
    const button = make("button", { type: "button" }, head);
    const cell = make("th", { scope: "col", class: [begins[i] && "begins", head === "run" && "text"].filter(Boolean).join(" ") || null, title: about || null }, button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = records.map((record) => [value(record.row), record.element]).sort(([a], [b]) => compare(a, b, down));
      body.append(...sorted.map(([, element]) => element));
    });
    return cell;
  });
  const spans = [];
  columns.forEach(([group], i) => (i && !begins[i] ? spans.at(-1).span++ : spans.push({ group, span: 1, begins: begins[i] })));
  const groups = spans.map(({ group, span, begins: line }) =>
    group ? make("th", { scope: "colgroup", colspan: span, class: line && "begins" }, group) : make("td", { colspan: span }),
  );
  const table = make(
    "table",
    { class: "layers" },
    make("thead", { class: "grouped" }, make("tr", {}, groups.map(asHead)), make("tr", {}, heads)),
    body,
  );
  const filter = make("input", { type: "search", placeholder: "part of a name", input: () => {
    const wanted = filter.value.toLowerCase();
    for (const { row, element } of records) element.hidden = !row.layer.toLowerCase().includes(wanted);
  } });
  const controls = make("div", { class: "controls" }, make("label", {}, "Show layers with ", filter));
  return [controls, scrolling(table, "Figures of every layer")];
}

/** An empty cell above columns without a group has to stay in place like the others. */
const asHead = (cell) => (cell.tagName === "TD" ? make("th", { colspan: cell.colSpan, "aria-hidden": "true" }) : cell);

/** Order two values; what is not known comes last, whichever way. */
function compare(a, b, down) {
  if (a == null || b == null) return (a == null) - (b == null);
  const mixed = typeof a !== typeof b;
  const order = mixed ? (typeof a === "string") - (typeof b === "string") : typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -order : order;
}

/** Make the table of a layer's latest moves, and what is known of their reasons. */
function moveTable(run, index) {
  const row = run.layers[index];
  const moves = run.moved[index].toReversed();
  if (!moves.length) return [make("p", { class: "note" }, `${row.layer} kept one format.`)];
  const own = Object.keys(run.own);
  const why = (at) => moves.some((move) => move[at] != null && move[at] !== "∞");
  const reasons = [["Δs", 5], ["divergence, bits", 6], ...own.map((name, i) => [name.replaceAll("_", " "), 7 + i])].filter(([, at]) => why(at));
  const rows = moves.map((move) => {
    const [step, word, fraction, nextWord, nextFraction] = move;
    const change = nextWord - word;
    const sign = change > 0 ? `+${change}` : change < 0 ? `−${-change}` : "0";
    return [whole(step), format(word, fraction), format(nextWord, nextFraction), sign, ...reasons.map(([, at]) => short(move[at]))];
  });
  const heads = ["step", "from ⟨WL, FL⟩", "to", "bits", ...reasons.map(([name]) => name)];
  const count = row.moves > moves.length ? `the latest ${moves.length} of ${whole(row.moves)} moves` : `${whole(row.moves)} ${row.moves === 1 ? "move" : "moves"}`;
  const note = reasons.length ? count : `${count}; the trace holds no reasons`;
  return [make("p", { class: "note" }, note), plainTable(heads, rows, `Moves of ${row.layer}`)];
}

/** Make the table of the learned widths of every tensor: their distribution, and behind it those of each channel. */
function channelTable(run) {
  const values = distinct(run.channels.map((tensor) => tensor.bits));
  const toShare = scale(values, true);
  const painted = (value, style) => {
    const { fill, ink } = colour(toShare(value));
    return styled(make("span", {}, String(value)), { background: fill, color: ink, ...style });
  };
  const rows = run.channels.map((tensor) => {
    const counts = distinct([tensor.bits]).map((value) => [value, tensor.bits.filter((bit) => bit === value).length]);
    const said = counts.map(([value, count]) => `${count} × ${value} bits`).join(", ");
    const share = make("div", { class: "share", role: "img", "aria-label": said, title: said }, counts.map(([value, count]) => painted(value, { flex: `${count} 0 0` })));
    const cells = make("div", { class: "cells" });
    const fill = () => cells.childElementCount || cells.append(...tensor.bits.map((bit, channel) => Object.assign(painted(bit, {}), { title: `channel ${channel}` })));
    const details = tensor.bits.length > 1 ? make("details", { toggle: fill }, make("summary", {}, "by channel"), cells) : null;
    const last = make("td", { class: "text" }, share, details);
    return make("tr", {}, make("th", { scope: "row" }, tensor.tensor), make("td", { title: tensor.mean }, String(Number(tensor.mean.toFixed(6)))), last, [tensor.bits.length, tensor.elements].map((count) => make("td", {}, whole(count))));
  });
  const heads = ["tensor", "mean bits", "how many have which word length", "formats", "elements"];
  const head = make("tr", {}, heads.map((text, i) => make("th", { scope: "col", class: i === 2 && "text" }, text)));
  return scrolling(make("table", {}, make("thead", {}, head), make("tbody", {}, rows)), `Learned widths of ${run.label}`);
}

/** Make the table of what each phase of learning did, every figure as the log has it. */
function phaseTable(run) {
  const names = [...new Set(run.phases.flatMap(Object.keys))].filter((name) => name !== "phase");
  const rows = run.phases.map((entry) => [String(entry.phase ?? UNKNOWN), ...names.map((name) => (entry[name] == null ? UNKNOWN : String(entry[name])))]);
  return plainTable(["phase", ...names.map((name) => name.replaceAll("_", " "))], rows, `Phases of ${run.label}`);
}

/** Make the table of the formats of all that is no layer's weight: activations, biases, norm parameters. */
function formatTable(run, names) {
  const kind = (name) => (/\.(input|output)$/.test(name) ? "activation" : "parameter");
  return plainTable(["tensor", "kind", "format"], names.map((name) => [name, kind(name), run.formats[name]]), `Formats of ${run.label}`);
}
