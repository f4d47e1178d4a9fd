"use strict";
// Draws the figures of the page: each is JSON in a script element, with colours named by the page's style.
const charts = (() => {
  const drawn = {};
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  const read = (kind, name) => {
    const element = document.querySelector(`script[data-${kind}="${name}"]`);
    return element ? JSON.parse(element.textContent) : null;
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const coloured = (value) => {
    if (typeof value === "string") return value.replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => colour(name));
    if (Array.isArray(value)) return typeof value.at(-1) === "number" ? value : value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
    return value;
  };
  const template = () => {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, automargin: true, ticks: "", title: { font: { size: 12, color: colour("--soft") }, standoff: 10 }, tickfont: { size: 12, color: colour("--soft") } };
    return {
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
        legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { size: 12, color: colour("--soft") } },
        hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink"), size: 12 }, align: "left" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") },
      },
    };
  };
  const draw = (name) => {
    const { figure, node } = drawn[name];
    const legend = figure.data.filter((trace) => trace.name && trace.showlegend !== false).length > 1 && figure.layout.showlegend !== false;
    const entries = figure.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    if (legend && node.clientWidth < 480) node.style.height = `calc(var(--height) + ${18 * (entries - 1)}px)`; // a line each
    const layout = {
      ...coloured(figure.layout), template: template(), uirevision: "kept", showlegend: legend,
      margin: { l: 8, r: 14, t: legend ? 8 : 10, b: 8 }, dragmode: coarse ? false : "zoom",
    };
    return Plotly.react(node, coloured(figure.data), layout, config);
  };
  const all = () => Object.keys(drawn).reduce((before, name) => before.then(() => draw(name)), Promise.resolve());

  document.querySelectorAll("script[data-chart]").forEach((element) => {
    const name = element.dataset.chart;
    drawn[name] = { figure: JSON.parse(element.textContent), extra: read("extra", name), node: document.getElementById(name) };
  });
  document.querySelectorAll("select.choice").forEach((select) => {
    select.addEventListener("change", () => {
      select.dataset.charts.split(" ").forEach((name) => {
        const { figure, extra } = drawn[name];
        extra.choices[Number(select.value)].forEach((values, trace) => {
          figure.data[trace][figure.data[trace].type === "heatmap" ? "z" : "y"] = values;
        });
        draw(name);
      });
    });
  });
  document.addEventListener("themechange", all);

  // Marks the section that is being read.
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    });
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main section").forEach((section) => watcher.observe(section));
  return { drawn, draw, all };
})();
