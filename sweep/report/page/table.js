"use strict";
// The summary table: sorted by any column, filtered by status and by words. Its rows stand in the page already, in the
// sweep's order, which is the third state of every column.

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

  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = el("button", { type: "button", class: "sort" }, head.textContent.trim());
    button.addEventListener("click", () => turn(head, column));
    head.replaceChildren(button);
  });

  function turn(head, column) {
    const order = BEST_FIRST.includes(head.dataset.key) ? ["descending", "ascending"] : ["ascending", "descending"];
    const next = order[order.indexOf(head.getAttribute("aria-sort")) + 1];
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    if (next) head.setAttribute("aria-sort", next);
    body.append(...(next ? sorted(column, next === "descending") : rows));
  }

  function sorted(column, descending) {
    const values = rows.map((row) => value(row.cells[column]));
    const places = rows.map((_, place) => place);
    places.sort((a, b) => {
      if (values[a] === "" || values[b] === "") return (values[a] === "") - (values[b] === "") || a - b;
      const least = compare(values[a], values[b]);
      return (descending ? -least : least) || a - b;
    });
    return places.map((place) => rows[place]);
  }

  function value(cell) {
    return cell.dataset.value ?? cell.textContent.trim();
  }

  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  }

  let status = "";
  const search = el("input", { type: "search", placeholder: "r=16, attn, …", oninput: filter });
  const count = el("output", { class: "soft", "aria-live": "polite" });
  const found = new Map();
  for (const row of rows) found.set(row.dataset.status, (found.get(row.dataset.status) || 0) + 1);
  const statuses = [["", `any (${rows.length})`]];
  for (const [each, amount] of found) statuses.push([each, `${each} (${amount})`]);

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
