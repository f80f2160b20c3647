"use strict";
// Sorts the summary table by any column and filters it by status and words. Its rows are in the page already, in the
// order of the sweep, to which the third click on a header returns.

(() => {
  const { el, select } = LoraSweep;
  const table = document.querySelector("table.summary");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const words = new Map(rows.map((row, place) => [row, row.textContent.toLowerCase() + labels(place)]));
  const BEST_FIRST = ["quality", "delta_baseline", "delta_best", "tied_with_best"];

  function labels(place) {
    const row = LoraSweep.byMark.get(rows[place].id.replace(/^row-/, ""));
    return row ? ` ${row.label.toLowerCase()}` : "";
  }

  const headerCells = Array.from(table.tHead.rows[0].cells);
  headerCells.forEach((headerCell, column) => {
    const button = el("button", { type: "button", class: "sort" }, headerCell.textContent.trim());
    button.addEventListener("click", () => cycleSort(headerCell, column));
    headerCell.replaceChildren(button);
  });

  function cycleSort(headerCell, column) {
    const order = BEST_FIRST.includes(headerCell.dataset.key) ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = order[order.indexOf(headerCell.getAttribute("aria-sort")) + 1];
    headerCells.forEach((cell) => cell.removeAttribute("aria-sort"));
    if (next) headerCell.setAttribute("aria-sort", next);
    body.append(...(next ? sortRows(column, next === "descending") : rows));
  }

  function sortRows(column, descending) {
    const values = rows.map((row) => value(row.cells[column]));
    const places = rows.map((_, place) => place);
    places.sort((a, b) => {
      if (values[a] === "" || values[b] === "") return (values[a] === "") - (values[b] === "") || a - b;
      const least = compareValues(values[a], values[b]);
      return (descending ? -least : least) || a - b;
    });
    return places.map((place) => rows[place]);
  }

  function value(cell) {
    return cell.dataset.value ?? cell.textContent.trim();
  }

  function compareValues(a, b) {
    const [x, y] = [Number(a), Number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  }

  let status = "";
  const search = el("input", { type: "search", placeholder: "r=16, attn, …", oninput: filter });
  const count = el("output", { class: "soft", "aria-live": "polite" });
  const statusCounts = new Map();
  for (const row of rows) statusCounts.set(row.dataset.status, (statusCounts.get(row.dataset.status) || 0) + 1);
  const statuses = [["", `any (${rows.length})`]];
  for (const [name, count] of statusCounts) statuses.push([name, `${name} (${count})`]);

  function filter() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden =
        (status !== "" && row.dataset.status !== status) || !wanted.every((word) => words.get(row).includes(word));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  }

  const controls = document.querySelector("#table .controls");
  controls.append(
    select("Status", statuses, (chosen) => {
      status = chosen;
      filter();
    }),
    el("label", { class: "control" }, el("span", {}, "Words"), search),
    count,
  );
  controls.hidden = false;
})();
