// A heading sorts its table: numbers as numbers, a second time the other way round; equal rows keep their order.
"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const text = row.cells[column].dataset.key.replace(/^inf$/, "Infinity");
        const number = Number(text);
        return text.trim() === "" || Number.isNaN(number) ? text : number;
      };
      const compare = (a, b) => {
        if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
        return typeof a === "number" ? -1 : 1;
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(key(a), key(b)));
      body.append(...rows);
    });
  });
}
