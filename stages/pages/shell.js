"use strict";
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
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
    axisY: { ticks: false }, axisX: { tickSize: 4 },
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
async function draw() {
  const config = theme();
  for (const [id, spec] of Object.entries(specs)) {
    await vegaEmbed(document.getElementById(id), spec, { actions: false, renderer: "svg", config });
  }
  document.documentElement.dataset.drawn = "yes";
}
dark.addEventListener("change", draw);
draw();
