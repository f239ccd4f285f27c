"use strict";
const read = id => JSON.parse(document.getElementById(id).textContent);
const specs = read("specs"), state = read("choices"), views = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");
const all = (what, within = document) => [...within.querySelectorAll(what)];
function theme() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), soft = style.getPropertyValue("--soft").trim();
  const grid = style.getPropertyValue("--grid").trim(), font = style.getPropertyValue("--sans").trim();
  const narrow = innerWidth < 640;
  return {
    background: "transparent", font, view: { stroke: null },
    axis: {
      labelColor: soft, titleColor: soft, gridColor: grid, domain: false, tickColor: grid, labelFontSize: 11,
      titleFontSize: 11.5, titleFontWeight: 400, titlePadding: 8, labelPadding: 5, labelLimit: 130,
    },
    axisY: { ticks: false, labelLimit: narrow ? 120 : 200 }, axisX: { tickSize: 4 },
    legend: {
      orient: "top", direction: "horizontal", labelColor: ink, titleColor: soft, labelFontSize: 11.5, titleFontSize: 11.5,
      titleFontWeight: 400, titleOrient: "left", titlePadding: 8, symbolSize: 70, columns: narrow ? 2 : 4, labelLimit: 150, offset: 8,
      symbolOpacity: 1, symbolBaseStrokeColor: soft, layout: { top: { anchor: "start", direction: narrow ? "vertical" : "horizontal", margin: narrow ? 4 : 18 } },
      gradientLength: 120, gradientThickness: 9, symbolStrokeWidth: 2,
    },
    text: { color: ink, font }, rule: { color: soft },
    range: { diverging: dark.matches ? ["#e2853a", "#262d33", "#2fb5a3"] : ["#cf6a1f", "#f1f1ee", "#0f8a7a"] },
  };
}

// Charts: those in sight are drawn at once, the others while the reader reads.
const waiting = new Set(Object.keys(specs));
// A chart that grows with its rows cannot be given its container's width in Vega-Lite without a warning, so in Vega.
const inner = "max(containerSize()[0], 160)";
function widen(vega) {
  delete vega.width;
  vega.autosize = { type: "fit-x", contains: "padding" };
  const width = { name: "width", init: inner, on: [{ update: inner, events: "window:resize" }] };
  vega.signals = [...(vega.signals ?? []).filter(each => each.name !== "width"), width];
  return vega;
}
async function draw(id) {
  waiting.delete(id);
  const params = ["chosen", "shown"].map(name => ({ name, value: state[name] }));
  const spec = { ...specs[id], params: [...(specs[id].params ?? []), ...params] };
  // Errors only: that a variant has no rows in a chart is no fault.
  const given = { actions: false, renderer: "svg", logLevel: 1, config: theme(), ...(spec.height?.step && { patch: widen }) };
  const { view } = await vegaEmbed(document.getElementById(id), spec, given);
  views.set(id, view);
}
const pause = () => new Promise(go => (window.requestIdleCallback ?? setTimeout)(go));
async function drawAll() {
  const near = id => document.getElementById(id).getBoundingClientRect().top < 1.5 * innerHeight;
  const first = [...waiting].filter(near);
  for (const id of first) await draw(id);
  document.documentElement.dataset.ready = "yes";
  while (waiting.size) {
    await pause();
    if (waiting.size) await draw([...waiting].find(near) ?? waiting.values().next().value);
  }
  document.documentElement.dataset.drawn = "yes";
}
async function tell(name) {
  for (const details of all("details.rows")) figures(details);
  for (const [id, view] of views) {
    if (JSON.stringify(specs[id]).includes(name)) await view.signal(name, state[name]).runAsync();
  }
}

// The variant of which the sections show one at a time.
function show() {
  for (const select of all("select.show")) select.value = state.shown;
  for (const panel of all(".panels")) {
    const kept = all("template", panel).find(each => each.dataset.of === state.shown);
    const slot = panel.querySelector(".slot");
    slot.replaceChildren(...(kept ? [kept.content.cloneNode(true)] : []));
    for (const table of all(".paged", slot)) turn(table);
    for (const text of all(".tokens", slot)) name(text);
    for (const part of all("select.part", slot)) part.addEventListener("change", () => shade(slot, part.value));
  }
}
// Gates by number: on a token that is pointed at, and as a table.
function name(text) {
  const parts = JSON.parse(text.dataset.parts), tokens = all("[data-gates]", text);
  const gates = token => token.dataset.gates.split(" ");
  for (const token of tokens) token.title = parts.map((part, at) => `${part} ${gates(token)[at]}`).join(", ");
  const details = text.parentElement.querySelector("details.gates");
  details?.addEventListener("toggle", () => {
    const rows = tokens.map(token => [token.textContent, ...gates(token)]);
    details.append(tabled(["token", ...parts], rows, `Gates of ${text.parentElement.ariaLabel}`));
  }, { once: true });
}
function shade(slot, part) {
  for (const token of all("[data-shades]", slot)) token.style.setProperty("--gate", token.dataset.shades.split(" ")[part]);
  for (const mean of all(".of-part", slot)) mean.hidden = mean.dataset.part !== part;
}
for (const select of all("select.show")) {
  select.addEventListener("change", () => { state.shown = select.value; show(); tell("shown"); });
}

// Long tables are turned page by page.
function element(kind, words, given = {}) {
  const made = Object.assign(document.createElement(kind), given);
  made.textContent = words;
  return made;
}
function tabled(columns, rows, about) {
  const table = element("table", ""), head = table.createTHead().insertRow(), body = table.createTBody();
  for (const column of columns) head.append(element("th", column, { scope: "col" }));
  for (const row of rows) {
    const line = body.insertRow();
    for (const value of row) line.insertCell().textContent = value;
  }
  const box = element("div", "", { className: "scroll tall", tabIndex: 0, role: "region", ariaLabel: about });
  box.append(table);
  return box;
}
function turn(table) {
  const rows = all("tbody tr", table), size = Number(table.dataset.rows), task = table.querySelector("select.task");
  const told = element("span", "", { role: "status" });
  const back = element("button", "Previous", { type: "button" }), on = element("button", "Next", { type: "button" });
  let at = 0;
  function lay() {
    const kept = rows.filter(row => !task?.value || row.dataset.task === task.value);
    for (const row of rows) row.hidden = true;
    for (const row of kept.slice(at, at + size)) row.hidden = false;
    told.textContent = `${Math.min(at + 1, kept.length)} to ${Math.min(at + size, kept.length)} of ${kept.length}`;
    back.disabled = at === 0;
    on.disabled = at + size >= kept.length;
  }
  back.addEventListener("click", () => { at = Math.max(at - size, 0); lay(); });
  on.addEventListener("click", () => { at += size; lay(); });
  task?.addEventListener("change", () => { at = 0; lay(); });
  const line = element("p", "", { className: "pager" });
  line.append(back, told, on);
  table.append(line);
  lay();
}

// The variants that are compared.
function compare() {
  const boxes = all(".choices input");
  for (const cell of all(".compared [data-of]")) cell.hidden = !state.chosen.includes(cell.dataset.of);
  for (const box of boxes) box.disabled = !box.checked && state.chosen.length >= state.most;
  const said = document.querySelector(".choices [role=status]");
  if (said) said.textContent = `${state.chosen.length} of ${boxes.length} chosen`;
}
for (const box of all(".choices input")) {
  box.addEventListener("change", () => {
    state.chosen = all(".choices input").filter(each => each.checked).map(each => each.value);
    compare();
    tell("chosen");
  });
}

// The figures behind a chart, for those who would rather read them.
const FIGURES_AT_MOST = 200;
function figures(details) {
  for (const old of all(".scroll, p", details)) old.remove();
  if (!details.open) return;
  const found = [];
  (function gather(part) {
    if (Array.isArray(part?.data?.values)) found.push(part.data.values);
    for (const inner of part?.layer ?? []) gather(inner);
  })(specs[details.dataset.of]);
  const words = JSON.stringify(specs[details.dataset.of]);
  const field = words.match(/indexof\(chosen, datum\.(\w+)\)/)?.[1], one = words.includes("datum.variant === shown");
  const kept = row => (!field || state.chosen.includes(row[field])) && (!one || row.variant === state.shown);
  const rows = (found.sort((a, b) => b.length - a.length)[0] ?? []).filter(kept);
  const columns = [...new Set(rows.flatMap(row => Object.keys(row)))].filter(name => !["left", "at"].includes(name));
  const cells = rows.slice(0, FIGURES_AT_MOST).map(row => columns.map(column => row[column] ?? "–"));
  details.append(tabled(columns.map(column => column.replaceAll("_", " ")), cells, details.firstElementChild.textContent));
  if (rows.length > FIGURES_AT_MOST) details.append(element("p", `The first ${FIGURES_AT_MOST} of ${rows.length} rows.`));
}
for (const details of all("details.rows")) details.addEventListener("toggle", () => figures(details));

dark.addEventListener("change", () => { for (const id of Object.keys(specs)) waiting.add(id); drawAll(); });
show();
compare();
drawAll();
