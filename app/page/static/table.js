// A table from plain rows. Cells that say the same as before are left alone, so that nothing flickers, no selection is lost
// and a screen reader that stands in one is not disturbed.

/** columns: [{title, number, of(row) -> string or Node, bar(row) -> 0..1, rowHead}] */
export function fill(table, caption, columns, rows, empty) {
  head(table, caption, columns);
  const body = table.tBodies[0];
  while (body.rows.length > Math.max(rows.length, rows.length ? 0 : 1)) body.deleteRow(-1);
  if (!rows.length) {
    body.replaceChildren(line(body.ownerDocument, columns.length, empty));
    return;
  }
  rows.forEach((row, index) => {
    let tr = body.rows[index];
    if (!tr || tr.className === "empty") {
      tr?.remove();
      tr = body.insertRow(index);
    }
    set(tr, "className", row.kind ?? "");
    columns.forEach((column, place) => cell(tr, place, column, row));
    while (tr.cells.length > columns.length) tr.deleteCell(-1);
  });
}

function head(table, caption, columns) {
  const key = JSON.stringify([caption, columns.map((column) => [column.title, Boolean(column.number)])]);
  if (table.dataset.head === key) return;
  table.dataset.head = key;
  table.replaceChildren();
  const title = table.createCaption();
  title.className = "hidden";
  title.textContent = caption;
  const row = table.createTHead().insertRow();
  for (const column of columns) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = column.title;
    if (column.number) th.className = "number";
    row.append(th);
  }
  table.createTBody();
}

function cell(tr, place, column, row) {
  let td = tr.cells[place];
  const tag = column.rowHead ? "TH" : "TD";
  if (!td || td.tagName !== tag) {
    const fresh = document.createElement(tag);
    if (column.rowHead) fresh.scope = "row";
    td ? td.replaceWith(fresh) : tr.append(fresh);
    td = fresh;
  }
  set(td, "className", [column.number ? "number" : "", column.className ?? ""].join(" ").trim());
  const said = column.of(row);
  if (said instanceof Node) {
    const copy = td.firstChild;
    if (!copy || !copy.isEqualNode(said) || td.childNodes.length > 1) td.replaceChildren(said);
  } else if (td.textContent !== said || td.firstElementChild) {
    td.textContent = said;
  }
  if (column.bar) {
    const width = `${Math.round(column.bar(row) * 1000) / 10}%`;
    if (td.style.getPropertyValue("--bar") !== width) td.style.setProperty("--bar", width);
    td.classList.add("barred");
  }
}

function line(document, width, text) {
  const tr = document.createElement("tr");
  tr.className = "empty";
  const td = tr.insertCell();
  td.colSpan = width;
  td.textContent = text;
  return tr;
}

function set(node, name, value) {
  if (node[name] !== value) node[name] = value;
}
