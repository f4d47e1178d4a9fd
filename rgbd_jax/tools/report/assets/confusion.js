"use strict";
// The confusion matrix: its order, what its cells show, and names beside it as far as there is room for them.
(() => {
  const name = "chart-confusion";
  const { figure, extra, node } = charts.drawn[name];
  const controls = document.getElementById("confusion-controls");
  const { counts, names, orders } = extra;
  const totals = counts.map((row) => row.reduce((sum, clips) => sum + clips, 0));
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  let shownOrder = [];

  const cell = (row, column) => {
    const [clips, total] = [counts[row][column], totals[row]];
    const said = row === column ? "recognised" : `taken for <b>${names[column]}</b>`;
    return `<b>${names[row]}</b> ${said}<br>${clips} of ${total} clips${total ? `, ${percent(clips / total)}` : ""}`;
  };
  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const ticks = (range) => {
    const wide = node.clientWidth > 560;
    const [first, last] = [Math.max(Math.ceil(Math.min(...range)), 0), Math.min(Math.floor(Math.max(...range)), shownOrder.length - 1)];
    const room = Math.max(Math.floor(node.clientWidth / (wide ? 22 : 24)), 4);
    const step = Math.max(Math.ceil((last - first + 1) / room), 1);
    const tickvals = [];
    for (let place = first; place <= last; place += step) tickvals.push(place);
    return { tickmode: "array", tickvals, ticktext: tickvals.map((place) => cut(names[shownOrder[place]], wide ? 26 : 11)) };
  };
  const show = () => {
    const chosen = new FormData(controls);
    const first = Number(chosen.get("first"));
    const errors = chosen.get("errors") !== null;
    const shares = chosen.get("values") === "shares";
    shownOrder = first ? orders[chosen.get("order")].slice(0, first) : orders[chosen.get("order")];
    const value = (row, column) => (errors && row === column ? null : shares ? (totals[row] ? counts[row][column] / totals[row] : null) : counts[row][column]);
    const z = shownOrder.map((row) => shownOrder.map((column) => value(row, column)));
    const highest = z.reduce((most, row) => row.reduce((best, item) => Math.max(best, item ?? 0), most), 0);
    const few = shownOrder.length <= 16 && node.clientWidth > 480;
    Object.assign(figure.data[0], {
      z, hovertext: shownOrder.map((row) => shownOrder.map((column) => cell(row, column))),
      text: few ? z.map((row) => row.map((item) => (item ? (shares ? `${Math.round(100 * item)}%` : String(item)) : ""))) : null,
      zmin: 0, zmax: shares && !errors ? 1 : highest || 1, hoverongaps: false, xgap: shownOrder.length <= 40 ? 1 : 0, ygap: shownOrder.length <= 40 ? 1 : 0,
      texttemplate: few ? "%{text}" : "", textfont: { size: 11 },
      colorbar: { thickness: 10, len: 0.6, tickformat: shares ? ".0%" : "d", outlinewidth: 0, tickfont: { size: 11 } },
      showscale: node.clientWidth > 560,
    });
    const range = [-0.5, shownOrder.length - 0.5];
    figure.layout.xaxis = { ...figure.layout.xaxis, ...ticks(range), range, tickangle: -60, showgrid: false, constrain: "domain" };
    figure.layout.yaxis = { ...figure.layout.yaxis, ...ticks(range), autorange: false, range: [range[1], range[0]], showgrid: false };
    figure.layout.uirevision = String(performance.now());
    return charts.draw(name);
  };
  controls.addEventListener("change", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  show().then(() => {
    node.on("plotly_relayout", (change) => {
      if (!Object.keys(change).some((key) => /axis\.(range|autorange)/.test(key))) return;
      const { xaxis, yaxis } = node._fullLayout;
      const [x, y] = [ticks(xaxis.range), ticks(yaxis.range)];
      Plotly.relayout(node, { "xaxis.tickvals": x.tickvals, "xaxis.ticktext": x.ticktext, "yaxis.tickvals": y.tickvals, "yaxis.ticktext": y.ticktext });
    });
    return charts.all();
  }).then(() => { document.documentElement.dataset.drawn = "true"; });
})();
