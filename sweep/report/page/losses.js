"use strict";
// The training loss of all trials at each step. A few trials have a colour and a button each. Many trials are grey
// lines; a select brings one of them forward.

(() => {
  const { el, decimals, data, rowOf, nameOf } = LoraSweep;
  const { chart, axis, range, highlight, plainText, number, palette } = LoraSweep.charts;
  const MAX_COLOURED = 30; // curves; more are grey
  const curves = data.curves.filter((curve) => curve.steps.length && rowOf(curve.mark));
  if (!curves.length) return;

  const areFew = curves.length <= MAX_COLOURED;
  const section = LoraSweep.show("losses");
  const curvesOfRow = (row) => new Set(curves.map((curve) => curve.mark).filter((mark) => row && rowOf(mark) === row));
  let picked = curvesOfRow(LoraSweep.trials.find((row) => row.recommended));
  const pickTrials = (marks) => {
    picked = marks;
    view.redraw();
  };
  const controls = areFew
    ? el("div", { class: "controls picks", role: "group", "aria-label": "Trials" })
    : highlight([...new Set(curves.map((curve) => rowOf(curve.mark)))], (row) => pickTrials(curvesOfRow(row)));
  if (areFew) curves.forEach((curve, place) => controls.append(makeButton(curve, place)));
  section.append(controls);

  // The legend: a button for each trial, which brings its curve forward.
  function makeButton(curve, place) {
    const node = el(
      "button",
      {
        type: "button",
        class: `pick swatch k${place % 6}`,
        title: rowOf(curve.mark).label,
        "aria-label": nameOf(curve.mark),
        "aria-pressed": String(picked.has(curve.mark)),
      },
      curve.mark,
    );
    node.addEventListener("click", () => {
      const isPicked = node.getAttribute("aria-pressed") === "true";
      for (const button of controls.querySelectorAll("button"))
        button.setAttribute("aria-pressed", String(!isPicked && button === node));
      pickTrials(new Set(isPicked ? [] : [curve.mark]));
    });
    return node;
  }

  const lossRange = findLossRange();
  const hiddenLosses = curves.flatMap((curve) => curve.losses).filter((loss) => loss > lossRange.max).length;
  if (hiddenLosses) {
    const words = hiddenLosses === 1 ? "1 loss above" : `${hiddenLosses} losses above`;
    const verb = hiddenLosses === 1 ? "is" : "are";
    controls.append(el("span", { class: "soft" }, `${words} ${lossRange.max} ${verb} not drawn`));
  }
  const lastLoss = (curve) => curve.losses[curve.losses.length - 1];
  const view = chart(section, {
    label: `Training loss of ${curves.length} trials at each step.`,
    height: 380,
    options,
    numbers: () => [
      ["row", "label", "first loss", "last loss", "last step"],
      curves.map((curve) => [
        curve.mark,
        rowOf(curve.mark).label,
        number(curve.losses[0], formatLoss),
        number(lastLoss(curve), formatLoss),
        number(curve.steps[curve.steps.length - 1], String),
      ]),
    ],
  });
  const formatLoss = (value) => decimals(value, 3);

  // The range of the axis. Losses far above the first ones are left out, because they would flatten all others.
  function findLossRange() {
    const firsts = curves.map((curve) => curve.losses[0]).sort((a, b) => a - b);
    const all = curves.flatMap((curve) => curve.losses.filter(Number.isFinite));
    const limit = 1.3 * firsts[Math.floor(firsts.length / 2)];
    return range(all.filter((loss) => loss <= limit));
  }

  function options(width, colours) {
    const shown = curves.filter((curve) => areFew || picked.has(curve.mark));
    const series = shown.map((curve) => drawCurve(curve, areFew, colours));
    if (!areFew) series.unshift(drawCrowd(colours));
    return {
      grid: { left: 46, right: 20, top: 14, bottom: 48 },
      xAxis: axis("step", { type: "value", min: "dataMin", max: "dataMax", nameGap: 28, splitLine: { show: false } }),
      yAxis: axis("loss (nats a token)", { ...lossRange, nameGap: 32 }),
      tooltip: {
        trigger: "item",
        formatter: ({ seriesId, value }) =>
          `${plainText(nameOf(seriesId))}\nstep ${value[0]}, loss ${formatLoss(value[1])}`,
      },
      series,
    };
  }

  function drawCurve(curve, areFew, colours) {
    const isPicked = picked.has(curve.mark);
    const faded = picked.size > 0 && !isPicked;
    const place = curves.indexOf(curve);
    const colour = areFew ? palette(colours)[place % 6] : colours.accent;
    return {
      id: curve.mark,
      type: "line",
      symbol: "circle",
      symbolSize: 5,
      showSymbol: false,
      triggerLineEvent: true,
      z: isPicked ? 5 : 2,
      lineStyle: {
        color: colour,
        width: isPicked ? 2.6 : 1.4,
        opacity: faded ? 0.4 : 1,
        type: place >= 6 && areFew ? (place >= 12 ? "dotted" : "dashed") : "solid",
      },
      itemStyle: { color: colour },
      emphasis: { focus: "series", lineStyle: { width: 2.6, opacity: 1 } },
      blur: { lineStyle: { opacity: 0.15 } },
      data: curve.steps.map((step, at) => [step, curve.losses[at]]),
    };
  }

  function drawCrowd(colours) {
    return {
      type: "lines",
      coordinateSystem: "cartesian2d",
      polyline: true,
      silent: true,
      z: 1,
      lineStyle: { color: colours.soft, width: 0.7, opacity: Math.max(0.04, Math.min(0.35, 15 / curves.length)) },
      data: curves
        .filter((curve) => curve.steps.length > 1) // the library draws no line of one point, and throws
        .map((curve) => ({ coords: curve.steps.map((step, at) => [step, curve.losses[at]]) })),
    };
  }
})();
