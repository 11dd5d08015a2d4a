const plots = (within) => within.querySelectorAll(".plotly-graph-div");
// what was drawn while it was folded away had no width yet
document.querySelectorAll("details").forEach((fold) => {
  fold.addEventListener("toggle", () => plots(fold).forEach((plot) => Plotly.Plots.resize(plot)));
});
// figures have the width of the window; paper is narrower
const wide = (plot) => plot.closest(".panels").children.length === 1;
window.addEventListener("beforeprint", () => plots(document).forEach((plot) => Plotly.relayout(plot, { width: wide(plot) ? 1020 : 330 })));
window.addEventListener("afterprint", () => plots(document).forEach((plot) => Plotly.relayout(plot, { width: null })));
