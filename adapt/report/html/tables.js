// Tables: of the runs, of a layer's moves, of learned widths, of phases, and of formats.

const scrolling = (table, label) =>
  make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);

/** Make a table of texts; the first column heads the rows. */
function plainTable(heads, rows, label) {
  const head = make(
    "tr",
    {},
    heads.map((text) => make("th", { scope: "col" }, text)),
  );
  const body = rows.map((row) =>
    make(
      "tr",
      {},
      row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, cell)),
    ),
  );
  return scrolling(make("table", {}, make("thead", {}, head), make("tbody", {}, body)), label);
}

/** Make the table that compares runs: groups [[name, [[name, texts by run]…]]…]. What differs is marked ≠. */
function facts(runs, groups, label) {
  const head = make(
    "tr",
    {},
    make("th", { scope: "col" }, ""),
    runs.map((run) => make("th", { scope: "col", class: "text name" }, run.label)),
  );
  const bodies = groups
    .filter(([, rows]) => rows.length)
    .map(([name, rows]) =>
      make(
        "tbody",
        {},
        name ? make("tr", {}, make("th", { scope: "rowgroup", colspan: runs.length + 1 }, name)) : null,
        rows.map(([title, texts]) => {
          const differs = new Set(texts).size > 1;
          return make(
            "tr",
            {},
            make("th", { scope: "row", class: differs && "differs" }, title),
            texts.map((text) => make("td", {}, text)),
          );
        }),
      ),
    );
  return scrolling(make("table", { class: "facts" }, make("thead", {}, head), bodies), label);
}

/** Make the table of a layer's latest moves, and what is known of their reasons. */
function moveTable(run, index) {
  const row = run.layers[index];
  const moves = run.moved[index].toReversed();
  if (!moves.length) return [make("p", { class: "note" }, `${row.layer} kept one format.`)];
  const own = Object.keys(run.own);
  const why = (at) => moves.some((move) => move[at] != null && move[at] !== "∞");
  const reasons = [
    ["strategy", 5],
    ["Δs", 6],
    ["divergence, bits", 7],
    ["rounding cost", 8],
    ...own.map((name, i) => [name.replaceAll("_", " "), 9 + i]),
  ].filter(([, at]) => why(at));
  const rows = moves.map((move) => {
    const [step, word, fraction, nextWord, nextFraction] = move;
    const change = nextWord - word;
    const sign = change > 0 ? `+${change}` : change < 0 ? `−${-change}` : "0";
    return [
      whole(step),
      format(word, fraction),
      format(nextWord, nextFraction),
      sign,
      ...reasons.map(([, at]) => short(move[at])),
    ];
  });
  const heads = ["step", "from ⟨WL, FL⟩", "to", "bits", ...reasons.map(([name]) => name)];
  const count =
    row.moves > moves.length
      ? `the latest ${moves.length} of ${whole(row.moves)} moves`
      : `${whole(row.moves)} ${row.moves === 1 ? "move" : "moves"}`;
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
    const share = make(
      "div",
      { class: "share", role: "img", "aria-label": said, title: said },
      counts.map(([value, count]) => painted(value, { flex: `${count} 0 0` })),
    );
    const cells = make("div", { class: "cells" });
    const fill = () =>
      cells.childElementCount ||
      cells.append(
        ...tensor.bits.map((bit, channel) => Object.assign(painted(bit, {}), { title: `channel ${channel}` })),
      );
    const details =
      tensor.bits.length > 1 ? make("details", { toggle: fill }, make("summary", {}, "by channel"), cells) : null;
    const last = make("td", { class: "text" }, share, details);
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, tensor.tensor),
      make("td", { title: tensor.mean }, String(Number(tensor.mean.toFixed(6)))),
      last,
      [tensor.bits.length, tensor.elements].map((count) => make("td", {}, whole(count))),
    );
  });
  const heads = ["tensor", "mean bits", "how many have which word length", "formats", "elements"];
  const head = make(
    "tr",
    {},
    heads.map((text, i) => make("th", { scope: "col", class: i === 2 && "text" }, text)),
  );
  return scrolling(
    make("table", {}, make("thead", {}, head), make("tbody", {}, rows)),
    `Learned widths of ${run.label}`,
  );
}

/** Make the table of what each phase of learning did, to four digits; `--format json` has all of them. */
function phaseTable(run) {
  const names = [...new Set(run.phases.flatMap(Object.keys))].filter((name) => name !== "phase");
  const shown = (value) => (typeof value === "number" ? short(value) : String(value ?? UNKNOWN));
  const rows = names.map((name) => [name.replaceAll("_", " "), ...run.phases.map((phase) => shown(phase[name]))]);
  return plainTable(["", ...run.phases.map((phase) => shown(phase.phase))], rows, `Phases of ${run.label}`);
}

/** Make the table of the formats of all that is no layer's weight: activations, biases, norm parameters. */
function formatTable(run, names) {
  const kind = (name) => (/\.(input|output)$/.test(name) ? "activation" : "parameter");
  return plainTable(
    ["tensor", "kind", "format"],
    names.map((name) => [name, kind(name), run.formats[name]]),
    `Formats of ${run.label}`,
  );
}
