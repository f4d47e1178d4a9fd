"use strict";
// Sorting by the buttons in a table's head, and searching by the first two columns.
(() => {
  const collator = new Intl.Collator(undefined, { numeric: true });
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const body = table.tBodies[0];
        const rows = [...body.rows];
        const numeric = rows.some((row) => row.cells[column].dataset.order !== undefined);
        const before = head.getAttribute("aria-sort");
        // Numbers begin with the highest, names with the first.
        const descending = before ? before === "ascending" : numeric;
        const sign = descending ? -1 : 1;
        const key = (row) => (numeric ? Number(row.cells[column].dataset.order ?? -1) : row.cells[column].textContent);
        const compare = numeric ? (a, b) => key(a) - key(b) : (a, b) => collator.compare(key(a), key(b));
        rows.sort((a, b) => sign * compare(a, b));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        body.append(...rows);
      });
    });
  });
  document.querySelectorAll("input.search").forEach((input) => {
    const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
    const columns = input.dataset.table === "table-pairs" ? 2 : 1;
    const found = document.getElementById(`${input.dataset.table}-found`);
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      let shown = 0;
      rows.forEach((row) => {
        const matches = [...row.cells].slice(0, columns).some((cell) => cell.textContent.toLowerCase().includes(wanted));
        row.hidden = !matches;
        shown += matches;
      });
      found.textContent = wanted ? `${shown} of ${rows.length}` : "";
    });
  });
})();
