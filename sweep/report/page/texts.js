"use strict";
// Shows generations side by side, and exports LoraSweep.texts for the blind comparison. A text comes from the page's
// data or, if there are too many, from a script file beside the page: one file for each prompt.

(() => {
  const { data, byMark, el, decimals, words } = LoraSweep;
  const MAX_ROWS = 6;
  const MAX_PROMPTS = 10; // at once: 90 cards take 0.2 s
  const FIRST_ROWS = 3; // shown at first
  const HIGH_REPETITION = 0.2; // share of repeated 4-grams from which a note warns, as in report.md
  const byId = (id) => document.getElementById(id);
  const chosen = { prompts: [0], rows: firstRows() };

  // ---- the texts of a prompt, from the page or from a file ----

  const requests = new Map(); // index of the prompt -> a promise of mark -> text; null where the file is missing
  const loadedTexts = new Map();

  window.loraSweepTexts = (place, texts) => loadedTexts.set(Number(place), texts);

  function loadTexts(place) {
    if (!requests.has(place))
      requests.set(place, data.texts[place] ? Promise.resolve(data.texts[place]) : loadShard(place));
    return requests.get(place);
  }

  function loadShard(place) {
    if (!data.shards[place]) return Promise.resolve({});
    return new Promise((resolve) => {
      const script = document.createElement("script");
      script.onload = () => resolve(loadedTexts.get(place) || null);
      script.onerror = () => resolve(null);
      script.src = data.shards[place];
      document.head.append(script);
    });
  }

  const describeMissingFile = (place) =>
    `The texts of this prompt are in the file ${data.shards[place]}, which is missing or cannot be read.`;

  // ---- choosing ----

  // The rows shown at first: the recommended one, then others tied with the best, then by quality.
  function firstRows() {
    const trials = LoraSweep.trials.filter((row) => row.quality !== null);
    const rank = (row) => [row.recommended ? 0 : 1, row.tied ? 0 : 1, -row.quality];
    trials.sort((a, b) => rank(a).reduce((order, value, at) => order || value - rank(b)[at], 0));
    return trials.slice(0, FIRST_ROWS).map((row) => row.mark);
  }

  const name = (row) => [LoraSweep.mark(row), " ", el("bdi", { class: "label" }, row.label)];

  const rowItems = () =>
    data.rows.map((row) => {
      const value = row.quality === null ? row.status : decimals(row.quality, 1);
      return { key: row.mark, content: [...name(row), " ", el("bdi", { class: "soft" }, value)] };
    });

  // A list of checkboxes with a search field, made when it is first opened: a sweep can have a thousand rows.
  // settings: {label, most, chosen() -> array of keys, change(keys)}. Returns a function that updates the checkboxes.
  function addChooser(details, items, settings) {
    const list = el("ul", { "aria-label": settings.label });
    const status = el("p", { class: "legend", role: "status" });
    details.addEventListener("toggle", () => {
      if (details.open && !list.isConnected) build();
      refresh();
    });

    function build() {
      for (const item of items()) {
        const box = el("input", { type: "checkbox", value: item.key, onchange: () => set(item.key, box.checked) });
        list.append(el("li", {}, el("label", {}, box, " ", ...item.content)));
      }
      if (list.children.length > 12) details.append(makeSearch(list, settings.label));
      details.append(list, status);
    }

    function set(key, isIn) {
      const others = settings.chosen().filter((other) => other !== key);
      settings.change(isIn ? [...others, key] : others);
      refresh();
    }

    function refresh() {
      if (!details.open) return;
      const now = new Set(settings.chosen());
      const full = now.size >= settings.most;
      for (const box of list.querySelectorAll("input")) {
        box.checked = now.has(box.value);
        box.disabled = full && !box.checked;
      }
      status.textContent = `${now.size} chosen${full ? ", which is the most: remove one to choose another" : ""}.`;
    }

    return refresh;
  }

  function makeSearch(list, label) {
    const search = el("input", { type: "search", placeholder: "Search", "aria-label": `Search in: ${label}` });
    search.addEventListener("input", () => {
      const wanted = search.value.toLowerCase().split(/\s+/);
      for (const entry of list.children)
        entry.hidden = !wanted.every((word) => entry.textContent.toLowerCase().includes(word));
    });
    return search;
  }

  // ---- one text ----

  // The pieces of a text, with marks on words that repeat and on words that differ from `others` (null: no comparison).
  function markText(text, others, repetition) {
    const found = words.split(text);
    const theirs = others === null ? [] : words.split(others);
    const again = repetition ? words.repeated(found) : [];
    const { fresh, gone } = others === null ? { fresh: [], gone: [] } : words.differences(theirs, found);
    const missingAt = new Map(gone.map((run) => [run.at, showMissingWords(others, theirs.slice(run.from, run.to))]));
    const parts = [];
    let written = 0;
    const upTo = (end, dress = (piece) => piece) => {
      if (end > written) parts.push(dress(text.slice(written, end)));
      written = end;
    };
    for (let at = 0; at < found.length; ) {
      upTo(found[at].start);
      if (missingAt.has(at)) parts.push(missingAt.get(at), " ");
      let end = at + 1;
      while (end < found.length && fresh[end] === fresh[at] && again[end] === again[at] && !missingAt.has(end)) end += 1;
      upTo(found[end - 1].end, (piece) => markPiece(piece, fresh[at], again[at]));
      at = end;
    }
    upTo(text.length);
    if (missingAt.has(found.length)) parts.push(" ", missingAt.get(found.length));
    const counts = { fresh: fresh.filter(Boolean).length, gone: gone.reduce((sum, run) => sum + run.to - run.from, 0) };
    return { parts, ...counts };
  }

  // Only the ends of a long run: the whole text is in the card beside it, and this text must stay readable.
  function showMissingWords(others, run) {
    const between = (from, to) => others.slice(run[from].start, run[to].end);
    const last = run.length - 1;
    const shown = last < 10 ? between(0, last) : `${between(0, 2)} … ${between(last - 2, last)}`;
    return el("del", { title: `${run.length} ${run.length === 1 ? "word" : "words"} missing here` }, shown);
  }

  function markPiece(piece, isFresh, isAgain) {
    const inner = isAgain ? el("mark", { class: "again" }, piece) : piece;
    return isFresh ? el("ins", {}, inner) : inner;
  }

  // {box, fresh, gone}: the element with the text and its end, and how many words differ.
  function body(text, others = null, repetition = false) {
    const { parts, fresh, gone } = markText(text.text, others, repetition);
    const box = el("div", { class: "words", dir: "auto" });
    if (!text.text.trim()) box.append(el("em", { class: "soft" }, "(nothing)"));
    box.append(...parts);
    if (text.more) box.append(el("span", { class: "soft" }, `… (${decimals(text.more, 0)} more characters)`));
    if (text.ended === true) box.append(" ", el("span", { class: "end done", title: "ended by itself" }, "■"));
    if (text.ended === false) box.append(" ", el("span", { class: "end cut" }, "✂ cut off"));
    return { box, fresh, gone };
  }

  function notes(text, row, difference) {
    const line = el("p", { class: "notes" });
    const note = (tone, words) => line.append(el("span", { class: `note ${tone}` }, words));
    if (text.ended === true) note("good", "■ ended by itself");
    if (text.ended === false) note("bad", "✂ cut off");
    if (text.quality !== null) note("plain", `quality ${decimals(text.quality, 1)}`);
    if (text.repetition !== null)
      note(text.repetition >= HIGH_REPETITION ? "bad" : "plain", `repetition ${decimals(text.repetition, 3)}`);
    if (text.tokens !== null) note("plain", `${decimals(text.tokens, 0)} tokens`);
    if (difference) note("plain", difference);
    if (row.trial_ids.length > 1) note("plain", `trial ${(text.of || 0) + 1} of ${row.trial_ids.length}`);
    return line;
  }

  // ---- the cards of a prompt ----

  const settings = () => ({
    against: byId("texts-against").value,
    reference: byId("texts-reference").checked,
    baseline: byId("texts-baseline").checked,
    repetition: byId("texts-repetition").checked,
  });

  // Baselines first, then the rows as in the table.
  function shownRows(baseline) {
    const bases = chosen.rows.map((mark) => byMark.get(mark).baseline).filter((mark) => byMark.has(mark));
    const marks = new Set([...chosen.rows, ...(baseline ? bases : [])]);
    const rows = data.rows.filter((row) => marks.has(row.mark));
    return [...rows.filter((row) => row.kind === "baseline"), ...rows.filter((row) => row.kind !== "baseline")];
  }

  function makeCard(row, texts, prompt, show) {
    const text = texts[row.mark];
    const head = el("p", { class: "head" }, ...name(row));
    if (row.recommended) head.append(" ", el("span", { class: "note good" }, "recommended"));
    const kind = row.kind === "baseline" ? "card base" : row.recommended ? "card recommended" : "card";
    if (!text || text.elsewhere) {
      const none = row.status === "complete" ? "No text for this prompt." : `No text: ${row.status}.`;
      const reason = text ? "This row has another prompt under this number." : none;
      return el("div", { class: kind }, head, el("p", { class: "notes" }), el("p", { class: "legend" }, reason));
    }
    const others = { reference: prompt.reference, baseline: baselineText(row, texts) }[show.against] ?? null;
    const { box, fresh, gone } = body(text, others, show.repetition);
    return el("div", { class: kind }, head, notes(text, row, others === null ? "" : `+${fresh} −${gone} words`), box);
  }

  function baselineText(row, texts) {
    const text = row.kind === "baseline" ? null : texts[row.baseline];
    return text && !text.elsewhere ? text.text : null;
  }

  function referenceCard(prompt) {
    const box = el("div", { class: "words", dir: "auto" }, prompt.reference);
    const count = `${decimals(words.split(prompt.reference).length, 0)} words`;
    const line = el("p", { class: "notes" }, el("span", { class: "note plain" }, count));
    return el("div", { class: "card reference" }, el("p", { class: "head" }, "reference"), line, box);
  }

  function makeArticle(place, show) {
    const prompt = data.prompts[place];
    const kind = prompt.reference === null ? "Fixed prompt" : "Held-out prompt";
    const summary = el("summary", {}, `${kind} `, el("code", {}, prompt.id), ", as the model reads it");
    const quiet = el("details", { class: "quiet" }, summary, el("pre", { dir: "auto" }, prompt.prompt));
    const label = `Texts for ${prompt.title}, side by side`;
    const cards = el("div", { class: "cards", role: "group", "aria-label": label });
    cards.append(el("p", { class: "legend" }, "Loading the texts of this prompt …"));
    loadTexts(place).then((texts) => {
      if (texts === null) cards.replaceChildren(el("p", { class: "legend failed" }, describeMissingFile(place)));
      else fillCards(cards, texts, prompt, show);
    });
    return el("article", { class: "prompt" }, el("h3", { dir: "auto" }, prompt.title), quiet, cards);
  }

  function fillCards(cards, texts, prompt, show) {
    const rows = shownRows(show.baseline).map((row) => makeCard(row, texts, prompt, show));
    cards.replaceChildren(...(show.reference && prompt.reference !== null ? [referenceCard(prompt)] : []), ...rows);
    cards.classList.toggle("by-3", ![4, 7, 8].includes(cards.children.length)); // fills the last line best
    if (!cards.children.length) cards.append(el("p", { class: "legend" }, "No row is chosen."));
    for (const box of cards.querySelectorAll(".words")) if (box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
  }

  // ---- the section ----

  function showChosenRows() {
    const remove = (mark) => {
      chosen.rows = chosen.rows.filter((other) => other !== mark);
      show();
      (byId("texts-rows").querySelector("button") || byId("texts-choose-rows").firstElementChild).focus();
    };
    const inOrder = data.rows.map((row) => row.mark).filter((mark) => chosen.rows.includes(mark));
    const buttons = inOrder.map((mark) => {
      const label = `Remove row ${mark}, ${byMark.get(mark).label}`;
      const cross = el("span", { "aria-hidden": "true" }, " ×");
      const chip = { type: "button", class: "chip", "aria-label": label, onclick: () => remove(mark) };
      return el("button", chip, ...name(byMark.get(mark)), cross);
    });
    byId("texts-rows").replaceChildren(...(buttons.length ? buttons : [el("span", { class: "soft" }, "none")]));
  }

  function key(shown) {
    const other = shown.against === "reference" ? "the reference" : "the row's baseline";
    const parts = [];
    if (shown.repetition)
      parts.push([el("mark", { class: "again" }, "hatched"), ": part of four words that occurred earlier in the text"]);
    if (shown.against) parts.push([el("ins", {}, "underlined"), `: not in ${other}`]);
    if (shown.against) parts.push([el("del", {}, "struck"), `: only in ${other}`]);
    byId("texts-key").replaceChildren(...parts.map((part) => el("span", {}, ...part)));
  }

  function show() {
    const shown = settings();
    const places = [...chosen.prompts].sort((a, b) => a - b);
    showChosenRows();
    key(shown);
    refresh.forEach((each) => each());
    byId("texts-prompt").value = String(places[0] ?? 0);
    byId("texts-previous").disabled = !places.length || places[0] === 0;
    byId("texts-next").disabled = !places.length || places[places.length - 1] >= data.prompts.length - 1;
    byId("texts-shown").replaceChildren(...places.map((place) => makeArticle(place, shown)));
  }

  function showPrompt(place) {
    chosen.prompts = [place];
    show();
  }

  // Shows the texts of these rows for this prompt, and scrolls there.
  function open(place, marks) {
    chosen.rows = marks.slice(0, MAX_ROWS);
    showPrompt(place);
    byId("generations").scrollIntoView({ block: "start" });
    byId("texts-prompt").focus({ preventScroll: true });
  }

  const promptItems = () =>
    data.prompts.map((prompt, place) => {
      const content = [`${place + 1} · `, el("bdi", {}, prompt.title), " ", el("code", {}, prompt.id)];
      return { key: String(place), content };
    });

  function addListeners() {
    const options = data.prompts.map((prompt, place) => {
      const title = LoraSweep.short(prompt.title);
      return el("option", { value: place }, `${place + 1} of ${data.prompts.length} · ${title}`);
    });
    byId("texts-prompt").append(...options);
    byId("texts-prompt").addEventListener("change", (event) => showPrompt(Number(event.target.value)));
    byId("texts-previous").addEventListener("click", () => showPrompt(Math.min(...chosen.prompts) - 1));
    byId("texts-next").addEventListener("click", () => showPrompt(Math.max(...chosen.prompts) + 1));
    for (const part of ["against", "reference", "baseline", "repetition"])
      byId(`texts-${part}`).addEventListener("change", show);
  }

  const changeTo = (list, keys) => {
    chosen[list] = keys;
    show();
  };
  const refresh = [
    addChooser(byId("texts-choose-rows"), rowItems, {
      label: "Rows to show",
      most: MAX_ROWS,
      chosen: () => chosen.rows,
      change: (marks) => changeTo("rows", marks),
    }),
    addChooser(byId("texts-choose-prompts"), promptItems, {
      label: "Prompts to show",
      most: MAX_PROMPTS,
      chosen: () => chosen.prompts.map(String),
      change: (places) => changeTo("prompts", places.map(Number)),
    }),
  ];

  LoraSweep.texts = { of: loadTexts, name, rowItems, addChooser, body, open };
  byId(data.prompts.length ? "texts" : "texts-none").hidden = false;
  if (data.prompts.length) {
    addListeners();
    show();
  }
})();
