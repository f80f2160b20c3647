"use strict";
// Quality against a cost that the reader chooses, with the Pareto front: the trials that no other trial beats at the
// same or a lower cost.

(() => {
  const { el, decimals, interval } = LoraSweep;
  const { chart, axis, costAxis, range, whisker, plainText, number } = LoraSweep.charts;
  const MAX_NUMBERED = 40; // trials with a numbered disc and an interval; of more trials, only those on the front
  const DISC_DISTANCE = 23; // px between discs of equal cost
  const COSTS = {
    trainable_params: ["Trainable parameters", LoraSweep.parameters],
    train_seconds: ["Training time", LoraSweep.seconds],
    peak_memory_bytes: ["Peak memory", LoraSweep.bytes],
  };
  const scored = LoraSweep.trials.filter((row) => row.quality !== null);
  const baselines = LoraSweep.baselines.filter((row) => row.quality !== null);
  const points = (key) => scored.filter((row) => row[key] > 0);
  const usable = Object.keys(COSTS).filter((key) => points(key).length);
  if (!usable.length) return;

  let cost = usable[0];
  const section = LoraSweep.show("pareto");
  const chooseCost = (key) => {
    cost = key;
    view.redraw(describeChart());
  };
  const choices = usable.map((key) => [key, COSTS[key][0].toLowerCase()]);
  section.append(el("div", { class: "controls" }, LoraSweep.select("Cost", choices, chooseCost)));
  const view = chart(section, { label: describeChart(), height: 400, options, numbers: listNumbers });

  // Trials by rising cost, each better than all trials that cost less or the same.
  function findFront() {
    let best = -Infinity;
    const frontRows = [];
    for (const row of points(cost).sort((a, b) => a[cost] - b[cost] || b.quality - a.quality)) {
      if (row.quality > best) frontRows.push(row);
      best = Math.max(best, row.quality);
    }
    return frontRows;
  }

  function describeChart() {
    const [name, write] = COSTS[cost];
    const frontRows = findFront().map((row) => `row ${row.mark} (${decimals(row.quality, 1)} at ${write(row[cost])})`);
    return `Quality against ${name.toLowerCase()}. On the front: ${frontRows.slice(0, 12).join(", ")}.`;
  }

  function options(width, colours) {
    const [rows, frontRows] = [points(cost), findFront()];
    const few = rows.length <= MAX_NUMBERED;
    const isFull = (row) => few || frontRows.includes(row);
    const heights = [...rows.filter(isFull), ...baselines].flatMap((row) => [row.low, row.high]);
    const scale = costScale(rows);
    return {
      grid: { left: 46, right: 20, top: 14, bottom: 50 },
      xAxis: scale.axis,
      yAxis: axis("quality", { ...range([...heights, ...rows.map((row) => row.quality)]), nameGap: 32 }),
      tooltip: {
        formatter: ({ seriesName, dataIndex }) => (seriesName === "trials" ? describeRow(rows[dataIndex]) : ""),
      },
      series: [
        {
          type: "line",
          step: "end",
          silent: true,
          symbol: "none",
          z: 1,
          lineStyle: { color: colours.accent, width: 1.5, opacity: 0.7 },
          data: frontRows.map((row) => [scale.place(row[cost]), row.quality]),
          markLine: baselineLines(colours),
        },
        {
          type: "custom",
          name: "trials",
          z: 3,
          clip: false,
          data: rows.map((row) => [scale.place(row[cost]), row.quality]),
          renderItem: ({ dataIndex }, api) =>
            drawDisc(rows[dataIndex], api, { rows, frontRows, full: isFull(rows[dataIndex]), few, colours }),
        },
      ],
    };
  }

  function costScale(rows) {
    const { unit, place, ticks, formatter, ...ends } = costAxis(
      cost,
      rows.map((row) => row[cost]),
    );
    const name = unit ? `${COSTS[cost][0]} (${unit})` : COSTS[cost][0];
    const look = {
      axisLabel: { ...ticks, formatter },
      axisTick: { show: false, ...ticks },
      splitLine: { show: false },
    };
    return { place, axis: axis(name, { type: "value", ...ends, nameGap: 30, ...look }) };
  }

  // How far a disc is moved sideways, in px: discs of equal cost stand side by side, and many small ones are spread out.
  function offset(row, { rows, frontRows, few }) {
    if (!few) return frontRows.includes(row) ? 0 : ((rows.indexOf(row) * 7) % 23) - 11;
    const equal = rows.filter((other) => other[cost] === row[cost]);
    equal.sort((a, b) => frontRows.includes(b) - frontRows.includes(a));
    const place = equal.indexOf(row);
    return (place % 2 ? 1 : -1) * Math.ceil(place / 2) * Math.min(DISC_DISTANCE, 140 / equal.length);
  }

  function drawDisc(row, api, drawing) {
    const { full, few, colours } = drawing;
    const at = (quality) => api.coord([api.value(0), quality]);
    const [middle, y] = at(row.quality);
    const x = middle + offset(row, drawing);
    const strong = row.recommended ? colours.accent : row.tied ? colours.accent : colours.soft;
    const fill = row.recommended ? colours.accent : row.tied ? colours.accent_soft : colours.base;
    const ink = row.recommended ? colours.card : strong;
    const bars =
      full && row.low !== null && row.high !== null
        ? whisker(x, at(row.low)[1], at(row.high)[1], { stroke: strong, lineWidth: 1.3, opacity: 0.55 })
        : [];
    const r = few ? 10 : full ? 9 : 4;
    const words = full
      ? {
          textConfig: { position: "inside" },
          textContent: {
            style: { text: row.mark, fill: ink, fontSize: row.mark.length > 2 ? 9 : 11, fontWeight: 600 },
          },
        }
      : {};
    const style = { fill, stroke: strong, lineWidth: full ? 1.3 : 0.8, opacity: full ? 1 : 0.75 };
    return {
      type: "group",
      children: [...bars, { type: "circle", shape: { cx: x, cy: y, r }, style, z2: 5 + full, ...words }],
    };
  }

  // A dashed line for each baseline; lines that nearly touch share one label.
  function baselineLines(colours) {
    const order = [...baselines].sort((a, b) => a.quality - b.quality);
    const all = [...scored, ...baselines].flatMap((row) => [row.low ?? row.quality, row.high ?? row.quality]);
    const { min, max } = range(all);
    const near = (max - min) / 22; // a line of text
    const names = [];
    order.forEach((row, place) => {
      const follows = place && row.quality - order[place - 1].quality < near;
      names.push(follows ? `${names[place - 1]}, ${row.mark}` : row.mark);
      if (follows) names[place - 1] = "";
    });
    return {
      silent: true,
      symbol: "none",
      lineStyle: { color: colours.tick, type: [5, 4], width: 1.2 },
      label: {
        color: colours.tick,
        fontSize: 12,
        position: "insideEndTop",
        formatter: ({ name }) => plainText(name, 12),
      },
      data: order.map((row, place) => ({ name: names[place], yAxis: row.quality })),
    };
  }

  function describeRow(row) {
    const [name, write] = COSTS[cost];
    const lines = [plainText(LoraSweep.name(row)), `quality ${decimals(row.quality, 1)} ${interval(row.low, row.high)}`];
    lines.push(`${name.toLowerCase()} ${write(row[cost])}`);
    const words = [row.verdict, row.tied && "tied with the best", row.recommended && "recommended"].filter(Boolean);
    return [...lines, ...(words.length ? [words.join(", ")] : [])].join("\n");
  }

  function listNumbers() {
    const [name, write] = COSTS[cost];
    const frontRows = findFront();
    const rows = points(cost).map((row) => [
      row.mark,
      row.label,
      number(row.quality, (value) => decimals(value, 1)),
      { number: interval(row.low, row.high) },
      number(row[cost], write),
      frontRows.includes(row) ? "yes" : "",
    ]);
    return [["row", "label", "quality", "95 % interval", name.toLowerCase(), "on the front"], rows];
  }
})();
