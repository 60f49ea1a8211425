// A click on a column title sorts the table: numbers in descending order, words alphabetically
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const th = button.parentElement, table = th.closest("table");
  const column = [...th.parentElement.children].indexOf(th);
  const cell = row => row.children[column].textContent;
  const rows = [...table.rows].slice(1), number = row => parseFloat(cell(row));
  const words = rows.every(row => isNaN(number(row)));
  const down = th.ariaSort ? th.ariaSort !== "descending" : !words;
  rows.sort((a, b) => (down ? -1 : 1) * (words ? cell(a).localeCompare(cell(b))
    : (isNaN(number(a)) ? -1e9 : number(a)) - (isNaN(number(b)) ? -1e9 : number(b))));
  for (const other of th.parentElement.children) other.ariaSort = null;
  th.ariaSort = down ? "descending" : "ascending";
  table.append(...rows);
};
// A row under the pointer shows the images of its method
const shown = document.createElement("img");
Object.assign(shown, { id: "shown", alt: "Images of the method under the pointer" });
document.body.append(shown);
for (const row of document.querySelectorAll("tr[data-method]")) {
  const show = () => {
    const grids = [...document.querySelectorAll(".grids img")];
    const grid = grids.find(image => image.alt === row.dataset.method);
    shown.style.display = grid ? "block" : "none";
    if (grid) shown.src = grid.src;
  };
  const hide = () => { shown.style.display = "none"; };
  Object.assign(row, { onmouseenter: show, onfocus: show, onmouseleave: hide, onblur: hide });
}
