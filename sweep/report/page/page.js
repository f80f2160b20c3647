"use strict";
// What all scripts of the page share: the data, elements, and how numbers are written. It is loaded first. No script
// writes markup: whatever a text holds, it reaches the page as text.

const LoraSweep = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byMark = new Map(data.rows.map((row) => [row.mark, row]));
  const UNKNOWN = "–";
  const EXACT = 40; // further digits, which tell a tie from a number near it
  const LABEL_LIMIT = 60; // characters of a label where space is short; the tables hold all

  // el("button", {type: "button", class: "quiet", onclick: save}, "Save"): attributes, handlers, then children.
  function el(tag, settings = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(settings)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  // Shows a section that was hidden because it needs scripts, and the link to it.
  function show(id) {
    const section = document.getElementById(id);
    section.hidden = false;
    for (const link of document.querySelectorAll(`nav a[href="#${id}"]`)) link.hidden = false;
    return section;
  }

  // A labelled select; options are [value, text].
  function select(label, options, onchange) {
    const box = el("select", { onchange: (event) => onchange(event.target.value) });
    for (const [value, text] of options) box.append(el("option", { value }, short(text)));
    return el("label", { class: "control" }, el("span", {}, label), box);
  }

  function mark(row) {
    return el("span", { class: row.kind === "baseline" ? "mark base" : "mark" }, row.mark);
  }

  function short(text, limit = LABEL_LIMIT) {
    const letters = Array.from(String(text));
    return letters.length <= limit ? String(text) : `${letters.slice(0, limit - 1).join("")}…`;
  }

  // The row of a mark: a configuration's own, or one of its seeds (2a, 2b).
  const rowOf = (mark) => byMark.get(mark) ?? byMark.get(mark.replace(/([a-z]|\.\d+)$/, ""));
  const nameOf = (mark) => name({ ...rowOf(mark), mark });

  const name = (row) => `${row.mark} ${row.label}`;

  // Writes a number as Python does, so that the page and report.md agree: it rounds the exact value, and a tie to the
  // even digit. toFixed rounds a tie up, and toLocaleString rounds the shortest decimal and not the exact value.
  function decimals(value, places) {
    if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
    const exact = Math.abs(value).toFixed(places + EXACT);
    const cut = exact.slice(0, -EXACT).replace(/\.$/, "");
    const even = /^50*$/.test(exact.slice(-EXACT)) && Number(cut.at(-1)) % 2 === 0;
    const [whole, part] = (even ? cut : Math.abs(value).toFixed(places)).split(".");
    const text = whole.replace(/\B(?=(\d{3})+$)/g, ",") + (part ? `.${part}` : "");
    return value < 0 && /[1-9]/.test(text) ? `-${text}` : text;
  }

  const signed = (value, places) => (value > 0 ? `+${decimals(value, places)}` : decimals(value, places));
  const interval = (low, high, write = (value) => decimals(value, 1)) =>
    low === null || high === null ? UNKNOWN : `[${write(low)}, ${write(high)}]`;

  function parameters(value) {
    if (value === null) return UNKNOWN;
    for (const [unit, size] of [
      ["B", 1e9],
      ["M", 1e6],
      ["k", 1e3],
    ])
      if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
    return String(value);
  }

  function seconds(value) {
    if (value === null) return UNKNOWN;
    if (value < 90) return `${Number(value.toPrecision(3))} s`;
    return value < 5400 ? `${Number((value / 60).toPrecision(3))} min` : `${Number((value / 3600).toPrecision(3))} h`;
  }

  function bytes(value) {
    if (value === null) return UNKNOWN;
    for (const [unit, power] of [
      ["GiB", 30],
      ["MiB", 20],
      ["KiB", 10],
    ])
      if (value >= 2 ** power) return `${Number((value / 2 ** power).toPrecision(3))} ${unit}`;
    return `${value} B`;
  }

  return {
    data,
    byMark,
    rowOf,
    nameOf,
    el,
    show,
    select,
    mark,
    short,
    name,
    decimals,
    signed,
    interval,
    parameters,
    seconds,
    bytes,
    trials: data.rows.filter((row) => row.kind === "trial"),
    baselines: data.rows.filter((row) => row.kind === "baseline"),
  };
})();
