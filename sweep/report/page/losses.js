"use strict";
// The losses of all trials at each step. A few are told apart by colour, with a button each; many are grey lines, of
// which a select picks one out.

(() => {
  const { el, decimals, data, rowOf, nameOf } = LoraSweep;
  const { chart, axis, range, highlight, plain, number, palette } = LoraSweep.charts;
  const MANY = 30; // curves from which they are grey
  const curves = data.curves.filter((curve) => curve.steps.length && rowOf(curve.mark));
  if (!curves.length) return;

  const few = curves.length <= MANY;
  const section = LoraSweep.show("losses");
  const ofRow = (row) => new Set(curves.map((curve) => curve.mark).filter((mark) => row && rowOf(mark) === row));
  let picked = ofRow(LoraSweep.trials.find((row) => row.recommended));
  const pick = (found) => {
    picked = found;
    view.redraw();
  };
  const controls = few
    ? el("div", { class: "controls picks", role: "group", "aria-label": "Trials" })
    : highlight([...new Set(curves.map((curve) => rowOf(curve.mark)))], (row) => pick(ofRow(row)));
  if (few) curves.forEach((curve, place) => controls.append(chip(curve, place)));
  section.append(controls);

  // The legend: a button a trial, which picks it out.
  function chip(curve, place) {
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
      for (const each of controls.querySelectorAll("button"))
        each.setAttribute("aria-pressed", String(!isPicked && each === node));
      pick(new Set(isPicked ? [] : [curve.mark]));
    });
    return node;
  }

  const top = ceiling();
  const cut = curves.flatMap((curve) => curve.losses).filter((loss) => loss > top.max).length;
  if (cut) controls.append(el("span", { class: "soft" }, `${cut} higher than ${top.max} and not drawn`));
  const last = (curve) => curve.losses[curve.losses.length - 1];
  const view = chart(section, {
    label: `Training loss of ${curves.length} trials at each step.`,
    height: 380,
    options,
    numbers: () => [
      ["row", "label", "first loss", "last loss", "last step"],
      curves.map((curve) => [
        curve.mark,
        rowOf(curve.mark).label,
        number(curve.losses[0], three),
        number(last(curve), three),
        number(curve.steps[curve.steps.length - 1], String),
      ]),
    ],
  });
  const three = (value) => decimals(value, 3);

  // Room for what trains; a loss that ran away would flatten all others.
  function ceiling() {
    const firsts = curves.map((curve) => curve.losses[0]).sort((a, b) => a - b);
    const all = curves.flatMap((curve) => curve.losses.filter(Number.isFinite));
    const limit = 1.3 * firsts[Math.floor(firsts.length / 2)];
    return range(all.filter((loss) => loss <= limit));
  }

  function options(width, colours) {
    const shown = curves.filter((curve) => few || picked.has(curve.mark));
    const series = shown.map((curve) => line(curve, few, colours));
    if (!few) series.unshift(grey(colours));
    return {
      grid: { left: 46, right: 20, top: 14, bottom: 48 },
      xAxis: axis("step", { type: "value", min: "dataMin", max: "dataMax", nameGap: 28, splitLine: { show: false } }),
      yAxis: axis("loss (nats a token)", { ...top, nameGap: 32 }),
      tooltip: {
        trigger: "item",
        formatter: ({ seriesId, value }) => `${plain(nameOf(seriesId))}\nstep ${value[0]}, loss ${three(value[1])}`,
      },
      series,
    };
  }

  function line(curve, few, colours) {
    const isPicked = picked.has(curve.mark);
    const faded = picked.size > 0 && !isPicked;
    const place = curves.indexOf(curve);
    const colour = few ? palette(colours)[place % 6] : colours.accent;
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
        type: place >= 6 && few ? (place >= 12 ? "dotted" : "dashed") : "solid",
      },
      itemStyle: { color: colour },
      emphasis: { focus: "series", lineStyle: { width: 2.6, opacity: 1 } },
      blur: { lineStyle: { opacity: 0.15 } },
      data: curve.steps.map((step, at) => [step, curve.losses[at]]),
    };
  }

  function grey(colours) {
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
