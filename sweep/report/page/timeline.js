"use strict";
// When each row was trained and evaluated. Each row has a lane; many rows share as many lanes as ran at once.

(() => {
  const { el, decimals, data, rowOf, nameOf } = LoraSweep;
  const { chart, axis, timeUnit, plainText, number, palette } = LoraSweep.charts;
  const MAX_LANES = 40; // rows with a lane each; more rows share lanes
  const spans = data.timeline.spans.filter((span) => span.end >= span.start && rowOf(span.mark));
  if (!spans.length) return;

  const hasLanePerRow = new Set(spans.map((span) => span.mark)).size <= MAX_LANES;
  const lanes = hasLanePerRow ? sortMarks() : packSpans();
  const most = Math.max(...spans.map((span) => span.end));
  const [unit, size] = timeUnit(most);
  const laneOf = (span) => (hasLanePerRow ? lanes.indexOf(span.mark) : span.lane);
  const section = LoraSweep.show("timeline");
  const keys = el(
    "p",
    { class: "swatches" },
    el("span", { class: "swatch k0" }, "training"),
    el("span", { class: "swatch k1" }, "evaluation"),
  );
  if (spans.some((span) => span.status !== "complete"))
    keys.append(el("span", { class: "swatch failed-swatch" }, "did not complete"));
  section.append(keys);
  chart(section, {
    label: `When each of ${lanes.length} ${hasLanePerRow ? "rows" : "lanes"} was at work, ${LoraSweep.seconds(most)} in all.`,
    height: Math.max(120, 60 + lanes.length * 24),
    options,
    numbers: () => [
      ["row", "label", "phase", "start", "seconds", "status"],
      spans.map((span) => [
        span.mark,
        rowOf(span.mark).label,
        span.phase,
        number(span.start, LoraSweep.seconds),
        number(span.end - span.start, (value) => decimals(value, 1)),
        span.status,
      ]),
    ],
  });

  // Marks in the order of the table; seeds of one configuration in the order of their spans.
  function sortMarks() {
    const place = new Map(data.rows.map((row, number) => [row, number]));
    const marks = [...new Set(spans.map((span) => span.mark))];
    return marks.sort((a, b) => place.get(rowOf(a)) - place.get(rowOf(b)));
  }

  // Put each span into the first lane that is free when it starts.
  function packSpans() {
    const ends = [];
    for (const span of spans.sort((a, b) => a.start - b.start)) {
      const free = ends.findIndex((end) => end <= span.start);
      span.lane = free < 0 ? ends.length : free;
      ends[span.lane] = span.end;
    }
    return ends.map((_, place) => `${place + 1}`);
  }

  function options(width, colours) {
    const colourOf = (span) =>
      span.status !== "complete" ? colours.bad : palette(colours)[span.phase === "training" ? 0 : 1];
    return {
      grid: { left: 44, right: 18, top: 6, bottom: 46 },
      xAxis: axis(`time since the start (${unit})`, {
        type: "value",
        min: 0,
        max: most / size,
        nameGap: 28,
        axisLabel: { showMaxLabel: false },
      }),
      yAxis: axis(hasLanePerRow ? "" : "lane", {
        type: "category",
        data: lanes,
        inverse: true,
        nameGap: 28,
        splitLine: { show: false },
        axisLabel: { formatter: (mark) => plainText(mark, 8) },
      }),
      tooltip: { formatter: ({ dataIndex }) => describeSpan(spans[dataIndex]) },
      series: [
        {
          type: "custom",
          data: spans.map((span) => [span.start / size, laneOf(span), span.end / size]),
          encode: { x: [0, 2], y: 1 },
          renderItem: ({ dataIndex }, api) => drawSpan(api, colourOf(spans[dataIndex])),
        },
      ],
    };
  }

  function drawSpan(api, fill) {
    const [x, y] = api.coord([api.value(0), api.value(1)]);
    const width = Math.max(2, api.coord([api.value(2), api.value(1)])[0] - x);
    return { type: "rect", shape: { x, y: y - 7, width, height: 14, r: 3 }, style: { fill, opacity: 0.9 } };
  }

  function describeSpan(span) {
    const lasted = LoraSweep.seconds(span.end - span.start);
    return `${plainText(nameOf(span.mark))}\n${plainText(span.phase, 20)}: ${lasted}, ${plainText(span.status, 40)}`;
  }
})();
