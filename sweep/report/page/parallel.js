"use strict";
// Parallel coordinates: each trial is a line across the axes, one for each setting, each cost and the quality.

(() => {
  const { data } = LoraSweep;
  const { chart, costAxis, range, highlight, plainText } = LoraSweep.charts;
  const complete = LoraSweep.trials.filter((row) => row.quality !== null);
  if (complete.length < 2 || !data.factors.length) return;

  const section = LoraSweep.show("parallel");
  let picked = complete.find((row) => row.recommended) ?? null;
  section.append(
    highlight(complete, (row) => {
      picked = row;
      view.redraw();
    }),
  );
  const costs = [
    ["trainable_params", "trainable"],
    ["train_seconds", "train time"],
    ["peak_memory_bytes", "peak memory"],
  ];
  const axes = [...data.factors.map(levelAxis), ...costs.flatMap(costAxes), qualityAxis()];
  const uprightHeight = 74 * axes.length;
  const view = chart(section, {
    label: `${complete.length} trials as lines across ${axes.map((each) => each.name).join(", ")}.`,
    height: 360,
    options,
  });

  // An axis: its name, its ends and ticks, and the place of a row on it.
  function levelAxis({ key, name, levels }) {
    const ticks = { customValues: levels.map((_, place) => place) };
    const place = (row) => levels.indexOf(String(row.values[key]));
    return {
      name,
      min: -0.3,
      max: levels.length - 0.7,
      ticks,
      place: (row) => (place(row) < 0 ? null : place(row)),
      formatter: (at) => levels[at] ?? "",
    };
  }

  function costAxes([key, name]) {
    const values = complete.map((row) => row[key]).filter((value) => value > 0);
    if (!values.length) return [];
    const { unit, place, ...rest } = costAxis(key, values);
    return [
      { name: unit ? `${name} (${unit})` : name, ...rest, place: (row) => (row[key] > 0 ? place(row[key]) : null) },
    ];
  }

  function qualityAxis() {
    return {
      name: "quality",
      ...range(complete.map((row) => row.quality)),
      ticks: {},
      place: (row) => row.quality,
      formatter: (value) => String(Number(value.toPrecision(6))),
    };
  }

  function options(width, colours) {
    const upright = width < 620; // on a phone the axes lie, one below the other
    view.grow(upright ? uprightHeight : 360);
    const frame = upright
      ? { left: 24, right: 24, top: 40, bottom: 30, layout: "vertical" }
      : { left: 40, right: 50, top: 34, bottom: 20, layout: "horizontal" };
    const group = (rows, lineStyle, z) => ({
      type: "parallel",
      z,
      silent: true,
      inactiveOpacity: 0.04,
      activeOpacity: lineStyle.opacity,
      lineStyle,
      data: rows.map((row) => axes.map((each) => each.place(row) ?? "-")),
    });
    const isPicked = (row) => row === picked;
    const tied = complete.filter((row) => row.tied && !isPicked(row));
    const rest = complete.filter((row) => !row.tied && !isPicked(row));
    const crowd = Math.max(0.15, Math.min(0.7, 20 / complete.length));
    return {
      parallel: frame,
      graphic: upright ? drawNames(frame, colours) : [],
      parallelAxis: axes.map((each, dim) => drawAxis(each, dim, upright ? 0 : (width / axes.length - 8) / 7, colours)),
      tooltip: { show: false },
      series: [
        group(rest, { color: colours.soft, width: 1, opacity: crowd }, 2),
        group(tied, { color: colours.accent, width: 1.4, opacity: Math.min(0.9, crowd * 1.6) }, 3),
        group(complete.filter(isPicked), { color: colours.tick, width: 3, opacity: 1 }, 4),
      ],
    };
  }

  // The names above lying axes. The library would set them beside the axes, where a phone has no room.
  function drawNames({ top, bottom, left }, colours) {
    const gap = (uprightHeight - top - bottom) / (axes.length - 1);
    return axes.map(({ name }, place) => ({
      type: "text",
      silent: true,
      z: 10,
      x: left - 8,
      y: top + gap * place - 22,
      style: {
        text: plainText(name, 24),
        fill: colours.ink,
        fontSize: 12.5,
        fontWeight: 600,
        backgroundColor: colours.card,
        padding: [1, 3],
      },
    }));
  }

  // A long name above the first axis begins there, above the last axis it ends there.
  const side = (name, dim) =>
    name.length < 12 ? {} : dim === 0 ? { align: "left" } : dim === axes.length - 1 ? { align: "right" } : {};

  function drawAxis({ name, formatter, ticks, place, ...ends }, dim, letters, colours) {
    return {
      dim,
      type: "value",
      ...ends,
      name: letters ? plainText(name, Math.floor(letters)) : "",
      nameLocation: "end",
      nameGap: 12,
      nameTextStyle: { color: colours.ink, fontSize: 12.5, fontWeight: 600, ...side(name, dim) },
      axisLine: { lineStyle: { color: colours.soft } },
      axisTick: { show: false, ...ticks },
      axisLabel: {
        color: colours.soft,
        fontSize: 11.5,
        backgroundColor: colours.card,
        padding: [1, 3],
        formatter: (at) => plainText(formatter(at), 14),
        ...ticks,
      },
      areaSelectStyle: { width: 16, borderColor: colours.accent, color: colours.accent_soft, opacity: 0.5 },
    };
  }
})();
