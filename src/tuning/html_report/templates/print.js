// figures have the width of the window; paper is narrower
const plots = () => document.querySelectorAll(".plotly-graph-div");
window.addEventListener("beforeprint", () => plots().forEach((plot) => Plotly.relayout(plot, { width: 1020 })));
window.addEventListener("afterprint", () => plots().forEach((plot) => Plotly.relayout(plot, { width: null })));
