"use strict";
// What each setting changes: a chart for each setting, and for each pair with a visible interaction. The other pairs
// are drawn when a reader opens them.

(() => {
  const { el, decimals, interval, signed, data } = LoraSweep;
  const { chart, axis, range, whisker, plainText, number } = LoraSweep.charts;
  const HEIGHT = 230;
  if (!data.effects.length && !data.interactions.length) return;

  const names = new Map(data.factors.map((factor) => [factor.key, factor.name]));
  const nameOf = (key) => names.get(key) ?? key;
  const formatMean = (value) => decimals(value, 1);
  const allPoints = [
    ...data.effects.flatMap((effect) => effect.levels),
    ...data.interactions.flatMap((pair) => pair.cells),
  ];
  const qualityRange = range(allPoints.flatMap((point) => [point.low, point.mean, point.high]));
  const section = LoraSweep.show("effects");
  if (data.effects.length) {
    section.append(
      el(
        "p",
        { class: "lede" },
        "Mean quality at each value, averaged over all other settings, with 95 % intervals.",
      ),
    );
    const cards = el("div", { class: "panels" });
    section.append(cards);
    data.effects.forEach((effect) => addEffectCard(cards, effect));
  }
  const visible = data.interactions.filter((pair) => pair.visible);
  const others = data.interactions.filter((pair) => !pair.visible);
  if (visible.length) section.append(el("h3", {}, "Settings that change each other's effect"), makePairCards(visible));
  if (others.length) {
    const words =
      others.length === 1
        ? "1 pair of settings without a visible interaction"
        : `${others.length} pairs of settings without a visible interaction`;
    const details = el("details", { class: "quiet" }, el("summary", {}, words));
    details.addEventListener(
      "toggle",
      () => details.open && details.children.length === 1 && details.append(makePairCards(others)),
    );
    section.append(details);
  }

  function addCard(parent, title, ...children) {
    const node = el("div", { class: "panel" }, el("h4", { dir: "auto" }, title), ...children);
    parent.append(node);
    return node;
  }

  function addEffectCard(parent, effect) {
    const name = LoraSweep.short(nameOf(effect.factor));
    const node = addCard(parent, name);
    const levels = effect.levels.map(
      (level) => `${level.level}: ${formatMean(level.mean)} ${interval(level.low, level.high)}`,
    );
    chart(node, {
      label: `Mean quality by ${name}. ${levels.join("; ")}.`,
      height: HEIGHT,
      options: (_, colours) => effectOptions(effect, colours),
    });
    const list = el("ul", { class: "contrasts" });
    for (const contrast of effect.contrasts) {
      const numbers = `${signed(contrast.value, 1)} ${interval(contrast.low, contrast.high)}`;
      const words = el(
        "span",
        { dir: "auto" },
        `${LoraSweep.short(contrast.level, 24)} against ${LoraSweep.short(contrast.against, 24)}`,
      );
      list.append(
        el(
          "li",
          { class: contrast.shown ? "shown" : "" },
          words,
          ": ",
          el("b", {}, numbers),
          contrast.shown ? "" : ", no difference shown",
        ),
      );
    }
    node.append(
      list,
      el(
        "p",
        { class: "soft" },
        `Over ${effect.contexts} ${effect.contexts === 1 ? "choice" : "choices"} of the other settings.`,
      ),
    );
  }

  // Levels are at 0, 1, 2 … of a numeric axis, so that the intervals of several lines can stand side by side.
  function levelAxis(levels, count) {
    const ticks = { customValues: levels.map((_, place) => place) };
    const axisLabel = {
      ...ticks,
      formatter: (place) => plainText(levels[place] ?? "", 22),
      width: Math.max(34, 250 / count),
      overflow: "truncate",
    };
    return axis("", { min: -0.5, max: levels.length - 0.5, axisLabel, axisTick: ticks, splitLine: { show: false } });
  }

  function chartOptions(levels, series, tooltip) {
    return {
      grid: { left: 34, right: 14, top: 24, bottom: 26 },
      xAxis: levelAxis(levels, levels.length),
      yAxis: axis("", { ...qualityRange }),
      tooltip: { formatter: tooltip },
      series,
    };
  }

  // A line through points with their intervals; shift moves it sideways, in levels.
  function drawCurve(points, colour, { shift = 0, joined = true, words = true, dash = "solid" }) {
    const at = (place) => place + shift;
    return [
      {
        type: "line",
        silent: true,
        symbol: "none",
        z: 2,
        lineStyle: { color: colour, width: 1.5, type: dash, opacity: joined ? 0.8 : 0 },
        data: points.map((point, place) => [at(place), point.mean]),
      },
      {
        type: "custom",
        z: 3,
        clip: false,
        data: points.map((point, place) => [at(place), point.mean]),
        renderItem({ dataIndex }, api) {
          const point = points[dataIndex];
          if (point.mean === null) return null;
          const y = (value) => api.coord([at(dataIndex), value])[1];
          const x = api.coord([at(dataIndex), point.mean])[0];
          const bars =
            point.low === null || point.high === null
              ? []
              : whisker(x, y(point.low), y(point.high), { stroke: colour, lineWidth: 1.4 });
          const dot = { type: "circle", shape: { cx: x, cy: y(point.mean), r: 4.5 }, style: { fill: colour } };
          const style = {
            text: formatMean(point.mean),
            x,
            y: y(point.high ?? point.mean) - 6,
            fill: colour,
            fontSize: 12,
            fontWeight: 600,
            align: "center",
            verticalAlign: "bottom",
          };
          return {
            type: "group",
            children: [...bars, dot, ...(words ? [{ type: "text", style, silent: true }] : [])],
          };
        },
      },
    ];
  }

  function effectOptions(effect, colours) {
    const numeric = data.factors.find((factor) => factor.key === effect.factor)?.numeric;
    const few = effect.levels.length <= 5;
    const series = drawCurve(effect.levels, colours.accent, { joined: Boolean(numeric), words: few });
    return chartOptions(
      effect.levels.map((each) => each.level),
      series,
      ({ dataIndex }) => describePoint(effect.levels[dataIndex]),
    );
  }

  const describePoint = (point, before = "") =>
    `${before}${plainText(point.level ?? "", 40)}\nquality ${formatMean(point.mean)} ${interval(point.low, point.high)}`;

  function makePairCards(pairs) {
    const cards = el("div", { class: "panels" });
    for (const pair of pairs) addPairCard(cards, pair);
    return cards;
  }

  function addPairCard(parent, pair) {
    const [first, second] = [
      [...new Set(pair.cells.map((cell) => cell.a))],
      [...new Set(pair.cells.map((cell) => cell.b))],
    ];
    const node = addCard(parent, `${LoraSweep.short(nameOf(pair.a), 30)} × ${LoraSweep.short(nameOf(pair.b), 30)}`);
    const keys = el("p", { class: "swatches" });
    second.forEach((level, place) =>
      keys.append(
        el("span", { class: `swatch k${place % 6}`, dir: "auto" }, LoraSweep.short(`${nameOf(pair.b)} ${level}`, 34)),
      ),
    );
    node.append(keys);
    const numbers = () => [
      [nameOf(pair.a), nameOf(pair.b), "mean", "95 % interval"].map((each) => LoraSweep.short(each)),
      pair.cells.map((cell) => [
        cell.a,
        cell.b,
        number(cell.mean, formatMean),
        { number: interval(cell.low, cell.high) },
      ]),
    ];
    chart(node, {
      label: LoraSweep.short(pair.text, 200),
      height: HEIGHT,
      options: (_, colours) => pairOptions(pair, first, second, colours),
      numbers,
    });
    node.insertBefore(el("p", { dir: "auto" }, pair.text), node.lastChild);
  }

  function pairOptions(pair, first, second, colours) {
    const cell = (a, b) =>
      pair.cells.find((each) => each.a === a && each.b === b) ?? { mean: null, low: null, high: null };
    const gap = Math.min(0.12, 0.5 / second.length);
    const series = second.flatMap((b, place) => {
      const shift = (place - (second.length - 1) / 2) * gap;
      const points = first.map((a) => ({ ...cell(a, b), level: `${a}, ${b}` }));
      return drawCurve(points, LoraSweep.charts.palette(colours)[place % 6], {
        shift,
        words: false,
        dash: place >= 6 ? "dashed" : "solid",
      });
    });
    return chartOptions(first, series, ({ seriesIndex, dataIndex }) => {
      const [a, b] = [first[dataIndex], second[Math.floor(seriesIndex / 2)]];
      return describePoint({ ...cell(a, b), level: `${plainText(a, 30)}, ${plainText(b, 30)}` });
    });
  }
})();
