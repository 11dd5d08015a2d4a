document.querySelectorAll(".brushed .plotly-graph-div").forEach((plot) => {
  const fade = (kept) => {
    const lines = [...plot.data.keys()].slice(1);
    Plotly.restyle(plot, { opacity: lines.map((line) => (kept === null || kept.has(line) ? 1 : 0.07)) }, lines);
  };
  plot.on("plotly_selected", (event) => {
    if (event && event.points) fade(event.points.length ? new Set(event.points.map((point) => point.curveNumber)) : null);
  });
  plot.on("plotly_deselect", () => fade(null));
});
