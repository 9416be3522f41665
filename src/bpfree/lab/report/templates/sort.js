"use strict";
// A click on a column's title sorts by it, a second one the other way round, a third one puts the rows back.
// Each group of rows is sorted by itself, and its heading stays above it.
(() => {
  const compare = (numeric) => (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));

  const rowsOf = (body) => [...body.rows].filter((row) => !row.classList.contains("group"));

  function sort(table, column, direction) {
    const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
    const byKey = compare(numeric);
    for (const body of table.tBodies) {
      const rows = rowsOf(body).map((row) => ({ row, key: row.cells[column].dataset.sort, at: Number(row.dataset.at) }));
      rows.sort((a, b) => {
        if (!direction || (a.key === "" && b.key === "")) return a.at - b.at;
        if (a.key === "" || b.key === "") return a.key === "" ? 1 : -1; // missing values last, either way
        return direction * byKey(a.key, b.key) || a.at - b.at;
      });
      body.append(...rows.map(({ row }) => row));
    }
  }

  for (const table of document.querySelectorAll("table")) {
    if (!table.tHead) continue;
    for (const body of table.tBodies) rowsOf(body).forEach((row, at) => (row.dataset.at = at));
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")] ?? null;
        const order = head.hasAttribute("aria-sort") ? next : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order) head.setAttribute("aria-sort", order);
        sort(table, column, { ascending: 1, descending: -1 }[order] ?? 0);
      });
    });
  }
  document.documentElement.classList.add("sortable");
})();
