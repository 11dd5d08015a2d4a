document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    if ("value" in cell.dataset) return Number(cell.dataset.value);
    return cell.classList.contains("number") ? null : cell.textContent;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const lines = [...body.rows].map((row) => ({ row, key: value(row, column) }));
      const known = lines.filter((line) => line.key !== null).sort((a, b) => sign * compare(a.key, b.key));
      body.append(...[...known, ...lines.filter((line) => line.key === null)].map((line) => line.row));
    });
  });
});
