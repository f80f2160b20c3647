"use strict";
// The blind comparison: two unnamed texts for one prompt, a vote, their names, and the tally of the votes. Votes are
// kept in this page until they are saved as a file, which the next report reads. sweep/report/analysis/votes.py
// defines the format of the file.

(() => {
  const { data, byMark, el, decimals, texts } = LoraSweep;
  const MAX_ROWS = 12; // 66 pairs; with more, no pair would be seen twice
  const FIRST_TIED = 6; // rows of the tied group that are compared at first
  const Z = 1.959963984540054; // normal quantile of a 95 % interval
  const NO_VOTES = { count: 0, rows: {}, notes: [] };
  const KEYS = { 1: "left", 2: "right", 0: "tie" };
  const byId = (id) => document.getElementById(id);
  const saved = data.votes || NO_VOTES; // of earlier reports: {count, rows: {mark: [wins, losses, ties]}, notes}
  const votes = [];
  const seen = new Set(); // "place mark mark" of what was shown, the marks in the table's order
  let rows = firstRows();
  let question = null; // {place, left, right, texts}
  let turn = 0; // number of the question: one that was being chosen while the rows changed is dropped
  let unsaved = 0;

  // The rows compared at first: rows tied with the best, the recommended one first, then the baselines.
  function firstRows() {
    const tied = LoraSweep.trials.filter((row) => row.tied || row.recommended);
    tied.sort((a, b) => b.recommended - a.recommended || b.quality - a.quality);
    const bases = LoraSweep.baselines.filter((row) => row.quality !== null || row.status === "complete");
    return [...tied.slice(0, FIRST_TIED), ...bases].slice(0, MAX_ROWS).map((row) => row.mark);
  }

  // ---- the next question ----

  function randomBelow(below) {
    return crypto.getRandomValues(new Uint32Array(1))[0] % below;
  }

  function shuffle(list) {
    const copy = [...list];
    for (let at = copy.length - 1; at > 0; at -= 1) {
      const other = randomBelow(at + 1);
      [copy[at], copy[other]] = [copy[other], copy[at]];
    }
    return copy;
  }

  // All pairs of rows, without pairs of two baselines where there are trials.
  function listPairs() {
    const inOrder = data.rows.filter((row) => rows.includes(row.mark));
    const trials = inOrder.some((row) => row.kind === "trial");
    const all = inOrder.flatMap((first, at) => inOrder.slice(at + 1).map((second) => [first, second]));
    const shown = all.filter((pair) => !trials || pair.some((row) => row.kind === "trial"));
    return shown.map((pair) => pair.map((row) => row.mark));
  }

  const timesShown = (pair) => [...seen].filter((key) => key.endsWith(` ${pair.join(" ")}`)).length;

  // The next question: the pair that was shown least often, with a prompt for which it was not shown yet. Ties are
  // broken at random, but prompts in the page come before prompts in files beside it. A pair with equal texts is left
  // out. Null when no question is left.
  async function chooseQuestion() {
    const order = shuffle(listPairs()).map((pair) => ({ pair, times: timesShown(pair) }));
    const inPage = (place) => (data.texts[place] ? 0 : 1);
    for (const { pair } of order.sort((a, b) => a.times - b.times)) {
      const places = shuffle(data.prompts.keys()).sort((a, b) => inPage(a) - inPage(b));
      for (const place of places) {
        if (seen.has([place, ...pair].join(" "))) continue;
        const textsByMark = (await texts.of(place)) || {};
        const [left, right] = shuffle(pair);
        if (canAsk(textsByMark[left], textsByMark[right])) return { place, left, right, texts: textsByMark };
      }
    }
    return null;
  }

  const canAsk = (left, right) => left && right && !left.elsewhere && !right.elsewhere && left.text !== right.text;

  async function askNext() {
    question = null;
    turn += 1;
    const ownTurn = turn;
    const next = await chooseQuestion();
    if (ownTurn === turn) showQuestion(next);
  }

  function showQuestion(shown) {
    question = shown;
    byId("blind-stage").hidden = question === null;
    byId("blind-none").hidden = question !== null;
    byId("blind-none").textContent =
      rows.length < 2 ? "Choose two rows or more." : "No pair of different texts is left among these rows.";
    if (question === null) return;
    const prompt = data.prompts[question.place];
    byId("blind-title").textContent = prompt.title;
    byId("blind-prompt").textContent = prompt.prompt;
    byId("blind-reference-box").hidden = prompt.reference === null;
    byId("blind-reference").textContent = prompt.reference ?? "";
    byId("blind-1").replaceChildren(texts.body(question.texts[question.left]).box);
    byId("blind-2").replaceChildren(texts.body(question.texts[question.right]).box);
  }

  // ---- voting ----

  function trialOf(mark) {
    const row = byMark.get(mark);
    return row.trial_ids[question.texts[mark].of || 0];
  }

  const keyOf = ({ place, left, right }) =>
    [place, ...data.rows.map((row) => row.mark).filter((mark) => mark === left || mark === right)].join(" ");

  function randomId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  function vote(winner) {
    if (!question) return;
    const [left, right] = [trialOf(question.left), trialOf(question.right)];
    const time = new Date().toISOString();
    const line = { id: randomId(), prompt_id: data.prompts[question.place].id, left, right, winner, time };
    votes.push({ ...question, winner, line });
    unsaved += 1;
    seen.add(keyOf(question));
    showLastVote();
    tally();
    askNext();
  }

  function skip() {
    if (!question) return;
    seen.add(keyOf(question));
    askNext();
  }

  // Takes the last vote back and asks the same question again. A vote that was saved cannot be taken back here.
  function undo() {
    if (!unsaved) return;
    const last = votes.pop();
    unsaved -= 1;
    turn += 1;
    seen.delete(keyOf(last));
    showLastVote();
    tally();
    showQuestion(last);
  }

  // The names of the rows of the last vote, and a button that shows both texts again.
  function showLastVote() {
    byId("blind-undo").disabled = !unsaved;
    const last = votes[votes.length - 1];
    const side = (mark, label, won) => {
      const row = texts.name(byMark.get(mark));
      return el("span", { class: won ? "was won" : "was" }, `${label} was `, ...row, won ? " ✓ better" : null);
    };
    const again = () => texts.open(last.place, [last.left, last.right]);
    const parts = !last
      ? []
      : [
          el("span", { class: "soft" }, `Vote ${votes.length}${last.winner === "tie" ? ", equal:" : ":"}`),
          side(last.left, "text 1", last.winner === "left"),
          side(last.right, "text 2", last.winner === "right"),
          el("button", { type: "button", class: "minor", onclick: again }, "See both again"),
        ];
    byId("blind-last").replaceChildren(...parts);
  }

  // ---- the tally ----

  // Wilson's interval of a share, as lora_sweep/scoring/intervals.py.
  function wilson(successes, n) {
    const share = successes / n;
    const centre = (share + (Z * Z) / (2 * n)) / (1 + (Z * Z) / n);
    const half = (Z / (1 + (Z * Z) / n)) * Math.sqrt((share * (1 - share)) / n + (Z * Z) / (4 * n * n));
    return [Math.max(0, centre - half), Math.min(1, centre + half)];
  }

  // mark -> [wins, losses, ties]: the votes in files and the votes in this page.
  function countVotes() {
    const counts = new Map(Object.entries(saved.rows).map(([mark, cells]) => [mark, [...cells]]));
    for (const { left, right, winner } of votes) {
      for (const mark of [left, right]) {
        const cells = counts.get(mark) || [0, 0, 0];
        cells[winner === "tie" ? 2 : (winner === "left") === (mark === left) ? 0 : 1] += 1;
        counts.set(mark, cells);
      }
    }
    return counts;
  }

  function tally() {
    const lines = [...countVotes()].filter(([mark]) => byMark.has(mark));
    const rated = lines.map(([mark, [wins, losses, ties]]) => {
      const n = wins + losses + ties;
      const successes = wins + ties / 2;
      return { row: byMark.get(mark), cells: [wins, losses, ties], rate: successes / n, ends: wilson(successes, n) };
    });
    rated.sort((a, b) => b.rate - a.rate || data.rows.indexOf(a.row) - data.rows.indexOf(b.row));
    byId("blind-tally").querySelector("tbody").replaceChildren(...rated.map(tallyRow));
    const total = saved.count + votes.length;
    const parts = saved.count && votes.length ? `, ${saved.count} from files and ${votes.length} in this page` : "";
    byId("blind-count").textContent = `${total} vote${total === 1 ? "" : "s"}${parts}; equal counts half.`;
    byId("blind-notes").replaceChildren(...saved.notes.map((note) => el("li", {}, note)));
    byId("blind-tally").hidden = !rated.length && !saved.notes.length && !votes.length;
    byId("blind-save").disabled = !votes.length;
  }

  function tallyRow({ row, cells, rate, ends: [low, high] }) {
    const percent = (value) => decimals(100 * value, 0);
    const band = el("i", {});
    const dot = el("u", {});
    band.style.left = `${100 * low}%`;
    band.style.width = `${100 * (high - low)}%`;
    dot.style.left = `${100 * rate}%`;
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, band, el("b", { class: "x50" }), dot);
    return el(
      "tr",
      { class: row.kind === "baseline" ? "baseline" : "" },
      el("th", { scope: "row" }, ...texts.name(row)),
      ...cells.map((value) => el("td", { class: "num" }, String(value))),
      el("td", { class: "num" }, `${percent(rate)} %`),
      el("td", { class: "interval" }, el("span", {}, `${percent(low)} to ${percent(high)} %`), bar),
    );
  }

  // ---- saving ----

  function save() {
    const content = { format: "lora-sweep votes 1", sweep: data.name, votes: votes.map((each) => each.line) };
    const file = new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" });
    const time = new Date().toISOString().slice(0, 19).replace(/[:-]/g, "");
    const name = data.name.replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 80);
    const link = el("a", { href: URL.createObjectURL(file), download: `votes-${name}-${time}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = 0;
    showLastVote();
  }

  // ---- the section ----

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    if (key in KEYS) vote(KEYS[key]);
    else if (key === "s") skip();
    else if (key === "u") undo();
    else return;
    event.preventDefault();
  }

  async function start() {
    byId("blind-start").hidden = true;
    await askNext();
    byId("blind-stage").focus({ preventScroll: true });
  }

  if (data.prompts.length && data.rows.length > 1) {
    texts.addChooser(byId("blind-choose"), texts.rowItems, {
      label: "Rows to compare",
      most: MAX_ROWS,
      chosen: () => rows,
      change: (marks) => {
        rows = marks;
        if (byId("blind-start").hidden) askNext();
      },
    });
    byId("blind-start").addEventListener("click", start);
    byId("blind-stage").addEventListener("keydown", onKey);
    for (const button of byId("blind-stage").querySelectorAll("[data-vote]"))
      button.addEventListener("click", () => vote(button.dataset.vote));
    byId("blind-skip").addEventListener("click", skip);
    byId("blind-undo").addEventListener("click", undo);
    byId("blind-save").addEventListener("click", save);
    byId("blind-where").append(
      "Move the file into ",
      el("code", {}, `runs/sweeps/${data.name}/`),
      " and run ",
      el("code", {}, `python -m sweep.report ${data.name}`),
      ": the next report counts its votes.",
    );
    window.addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
    tally();
    LoraSweep.show("blind");
  }
})();
