"use strict";
// What all charts share: when a chart is drawn, its colours, its size, and the table of its numbers.
//
// A chart is drawn when it comes near the window, again when its size or the colours change, and for print in the light
// colours at the width of paper. Its options are a function of the width, so that a phone gets another layout.

(() => {
  const { el } = LoraSweep;
  const PRINT_WIDTH = 680; // px
  const COLOUR_NAMES = "card base ink soft line accent accent-soft tick bad k2 k3 k4 k5".split(" ");
  const FONT = getComputedStyle(document.body).fontFamily;
  const drawn = new Map(); // the node of each chart -> its chart, options, and the width it was drawn at
  let colours = readColours();

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(
      COLOUR_NAMES.map((name) => [name.replace("-", "_"), style.getPropertyValue(`--${name}`).trim()]),
    );
  }

  // A text of the sweep inside a chart: short, and without the library's markup for styles.
  const plainText = (text, limit) => LoraSweep.short(text, limit).replaceAll("{", "{\u200b").replaceAll("\n", " ");

  // Draws a chart below `parent`. `options(width, colours)` returns the library's options, `numbers()` the headers and
  // rows of its table. Returns `redraw(label)` and `grow(height)`.
  function chart(parent, { label, height, options, numbers }) {
    const node = el("div", { class: "plot", role: "img", "aria-label": label });
    node.style.height = `${height}px`;
    parent.append(node);
    if (numbers) parent.append(table(numbers));
    const entry = { node, chart: null, options, wanted: false };
    drawn.set(node, entry);
    visibilityObserver.observe(node);
    sizeObserver.observe(node);
    return { redraw, grow };

    function redraw(words) {
      if (words) node.setAttribute("aria-label", words);
      draw(entry);
    }

    function grow(px) {
      node.style.height = `${px}px`;
    }
  }

  function draw(entry, width) {
    const { node } = entry;
    if (!entry.wanted || !(width || node.clientWidth)) return;
    if (!entry.chart)
      entry.chart = echarts.init(node, null, { devicePixelRatio: Math.max(2, window.devicePixelRatio), width });
    entry.chart.resize({ width: width || "auto" });
    entry.chart.setOption(completeOptions(entry.options(width || node.clientWidth, colours)), true);
    entry.size = width || node.clientWidth;
  }

  function completeOptions(options) {
    return {
      animation: false,
      textStyle: { fontFamily: FONT, color: colours.ink },
      ...options,
      tooltip: {
        renderMode: "richText", // the other mode writes markup
        confine: true,
        backgroundColor: colours.card,
        borderColor: colours.line,
        textStyle: { color: colours.ink, fontSize: 12.5, fontFamily: FONT, lineHeight: 18 },
        ...options.tooltip,
      },
    };
  }

  // An axis as all charts draw it.
  function axis(name, settings = {}) {
    const { axisLabel, ...others } = settings;
    return {
      name,
      nameLocation: "middle",
      nameTextStyle: { color: colours.soft, fontSize: 12 },
      axisLine: { onZero: false, lineStyle: { color: colours.line } },
      axisTick: { show: false },
      axisLabel: { color: colours.soft, fontSize: 12, hideOverlap: true, ...axisLabel },
      splitLine: { lineStyle: { color: colours.line, type: [2, 3] } },
      ...others,
    };
  }

  // The smallest and the largest; the losses of a thousand trials are too many for Math.min's arguments.
  const findExtremes = (values) =>
    values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);

  // The ends and the step of an axis that covers the values, in round numbers; several charts can share it.
  function range(values) {
    const finite = values.filter((value) => value !== null && Number.isFinite(value));
    if (!finite.length) return { min: 0, max: 1 };
    const [least, most] = findExtremes(finite);
    const rough = (most - least || Math.abs(most) || 1) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough);
    return { min: Math.floor(least / step) * step, max: Math.ceil(most / step) * step, interval: step };
  }

  // Six colours that are told apart in both themes: those of the classes k0 to k5.
  const palette = ({ accent, tick, k2, k3, k4, k5 }) => [accent, tick, k2, k3, k4, k5];

  // The axis of a cost, and the place of a value on it: parameters on a logarithmic scale, the others in round units.
  function costAxis(key, values) {
    const [least, most] = findExtremes(values);
    if (key === "trainable_params") {
      const room = Math.max(0.08, Math.log10(most / least) * 0.08);
      const ticks = { customValues: roundTicks(least, most).map(Math.log10) };
      const formatter = (value) => LoraSweep.parameters(Number((10 ** value).toPrecision(3)));
      return {
        unit: "",
        place: Math.log10,
        min: Math.log10(least) - room,
        max: Math.log10(most) + room,
        ticks,
        formatter,
      };
    }
    const [unit, size] = key === "peak_memory_bytes" ? memoryUnit(most) : timeUnit(most);
    const room = (most - least || most) / 12;
    const steps = range([Math.max(0, least - room) / size, (most + room) / size]);
    return {
      unit,
      place: (value) => value / size,
      ...steps,
      ticks: {},
      formatter: (value) => String(Number(value.toPrecision(6))),
    };
  }

  // 1, 2 and 5 times each power of ten between the ends; only the powers where there are more than three.
  function roundTicks(least, most) {
    const factors = most / least > 1000 ? [1] : [1, 2, 5];
    const ticks = [];
    for (let power = Math.floor(Math.log10(least)) - 1; power <= Math.log10(most) + 1; power += 1)
      for (const factor of factors) ticks.push(factor * 10 ** power);
    return ticks.filter((value) => value >= least / 1.2 && value <= most * 1.2);
  }

  const memoryUnit = (most) => (most >= 2 ** 30 ? ["GiB", 2 ** 30] : ["MiB", 2 ** 20]);
  const timeUnit = (most) => (most < 300 ? ["s", 1] : most < 18_000 ? ["min", 60] : ["h", 3600]);

  // The shapes of a mean with its interval: an upright line from low to high at x, with short caps.
  function whisker(x, low, high, style, cap = 4) {
    const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style, silent: true });
    return [line(x, low, x, high), line(x - cap, low, x + cap, low), line(x - cap, high, x + cap, high)];
  }

  // A select that highlights one row in a chart, at first the recommended one.
  function highlight(rows, onchange) {
    const options = [["", "none"], ...rows.map((row) => [row.mark, LoraSweep.name(row)])];
    const control = LoraSweep.select("Highlight", options, (mark) => onchange(LoraSweep.byMark.get(mark) ?? null));
    control.querySelector("select").value = rows.find((row) => row.recommended)?.mark ?? "";
    return el("div", { class: "controls" }, control);
  }

  // The table of a chart's numbers, made when it is opened.
  function table(numbers) {
    const place = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers of the chart" });
    const details = el("details", { class: "quiet numbers" }, el("summary", {}, "The numbers"), place);
    details.addEventListener("toggle", () => details.open && fill(place, numbers()));
    return details;
  }

  function fill(place, [headers, rows]) {
    const numeric = headers.map((_, column) => rows.some((row) => typeof row[column] === "object" && row[column]));
    const cell = (value, column) =>
      el("td", { class: numeric[column] ? "num" : "nowrap" }, value === null ? "–" : text(value));
    const head = el(
      "tr",
      {},
      ...headers.map((header, column) => el("th", { scope: "col", class: numeric[column] ? "num" : "" }, header)),
    );
    place.replaceChildren(
      el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))))),
    );
  }

  const text = (value) => (typeof value === "object" ? value.number : value);
  const number = (value, write) => (value === null || value === undefined ? null : { number: write(value) });

  const visibilityObserver = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        visibilityObserver.unobserve(target);
        drawn.get(target).wanted = true;
        draw(drawn.get(target));
      }
    },
    { rootMargin: "400px" },
  );
  const sizeObserver = new ResizeObserver((entries) => {
    requestAnimationFrame(() => {
      for (const { target } of entries) {
        const entry = drawn.get(target);
        if (entry.chart && entry.size !== target.clientWidth && !isPrinting()) draw(entry);
        else if (entry.chart && entry.chart.getHeight() !== target.clientHeight) entry.chart.resize();
      }
    });
  });

  const isPrinting = () => document.documentElement.classList.contains("printing");

  function redrawAll(width) {
    colours = readColours();
    for (const entry of drawn.values()) {
      if (width && entry.node.offsetParent !== null) entry.wanted = true;
      draw(
        entry,
        width && Math.min(width, (width * entry.node.clientWidth) / entry.node.closest("section").clientWidth),
      );
      if (width && entry.chart) entry.chart.getZr().flush();
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => isPrinting() || redrawAll());
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    redrawAll(PRINT_WIDTH);
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    redrawAll();
  });

  LoraSweep.charts = { chart, axis, range, costAxis, timeUnit, whisker, highlight, plainText, number, palette };
})();
