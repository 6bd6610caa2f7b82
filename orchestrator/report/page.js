"use strict";
(() => {
  // Without this script the page reads the same; with it, the heads of tables are buttons that sort.
  const said = document.getElementById("said");

  function key(row, column) {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    return cell.dataset.value === undefined ? text : Number(cell.dataset.value);
  }

  function compare(one, other) {
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), "en", { numeric: true });
  }

  function sort(table, head) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0], column = head.cellIndex;
    const rows = Array.from(body.rows, (row) => ({ row, key: key(row, column) }));
    rows.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
      return falling ? compare(b.key, a.key) : compare(a.key, b.key);
    });
    body.append(...rows.map((each) => each.row));
    said.textContent = `Sorted by ${head.textContent}, ${head.getAttribute("aria-sort")}.`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head));
      head.append(button);
    }
  }

  const opened = [];
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      opened.push(details);
    }
  });
  addEventListener("afterprint", () => {
    for (const details of opened.splice(0)) details.open = false;
  });

  // An address with an anchor inside of something folded opens it.
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
})();
