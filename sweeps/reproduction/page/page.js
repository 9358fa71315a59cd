// What the page can do beyond being read: sort, filter, copy, and maps to hover over.

const table = document.getElementById("table");
const body = table.tBodies[0];
const rows = [...body.rows];
const form = document.getElementById("filters");
const search = document.getElementById("search");

// Sorting. Rows go by the order of the paper where they are equal.
const verdicts = [...form.elements.verdict].map((box) => box.value);
const values = {
  place: (row) => rows.indexOf(row),
  says: (row) => row.cells[1].textContent,
  verdict: (row) => verdicts.indexOf(row.dataset.verdict),
  result: (row) => (row.dataset.result === "" ? NaN : Number(row.dataset.result)),
};

function compare(a, b) {
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

function sortBy(header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const value = values[header.dataset.key];
  const unknown = (row) => Number.isNaN(value(row)); // Last, whichever the direction.
  const sorted = [...rows].sort(
    (a, b) =>
      unknown(a) - unknown(b) ||
      (ascending ? 1 : -1) * (unknown(a) ? 0 : compare(value(a), value(b))) ||
      rows.indexOf(a) - rows.indexOf(b),
  );
  body.append(...sorted);
}

for (const header of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  button.addEventListener("click", () => sortBy(header));
  header.append(button);
}

// Filters, of the table and of the entries below it. A row is found by what its entry in full says, too.
const entries = new Map(rows.map((row) => [row, document.getElementById(row.dataset.entry)]));
const texts = new Map(
  rows.map((row) => [row, `${row.textContent} ${entries.get(row).textContent}`.toLowerCase().replace(/\s+/g, " ")]),
);

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = new Set([...form.elements.verdict].filter((box) => box.checked).map((box) => box.value));
  let shown = 0;
  for (const row of rows) {
    const fits = chosen.has(row.dataset.verdict) && words.every((word) => texts.get(row).includes(word));
    row.hidden = entries.get(row).hidden = !fits;
    shown += fits;
  }
  for (const section of document.querySelectorAll("#entries > section")) {
    section.hidden = !section.querySelector("article:not([hidden])");
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length} entries`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
form.hidden = false;
filter(); // A browser may have kept what was filled in.

// A link to an entry leads to it, whatever is filtered.
function reveal() {
  const target = document.querySelector(":target");
  if (!target?.closest("[hidden]")) return;
  form.reset();
  setTimeout(() => target.scrollIntoView());
}
addEventListener("hashchange", reveal);
reveal();

// Commands to copy: selected too, for browsers that give no access to the clipboard.
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// Maps. The cells are elements with labels; the pointer and the arrow keys say them.
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

async function drawMap(figure) {
  const plot = figure.querySelector(".plot");
  const said = figure.querySelector("output");
  const columns = Number(figure.dataset.columns);
  const specification = JSON.parse(figure.querySelector("script").textContent);
  await window.vegaEmbed(plot, specification, { mode: "vega-lite", renderer: "svg", actions: false });
  const cells = [...plot.querySelectorAll("[aria-roledescription='rect mark']")];
  let current = -1;

  function say(element) {
    for (const old of plot.querySelectorAll(".current")) old.classList.remove("current");
    element.classList.add("current");
    said.textContent = element.getAttribute("aria-label");
    current = cells.includes(element) ? cells.indexOf(element) : current;
  }

  for (const kind of ["pointerover", "click"]) {
    plot.addEventListener(kind, (event) => {
      const element = event.target.closest("[aria-roledescription]");
      if (element?.matches("path[aria-label]")) say(element);
    });
  }
  plot.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !cells.length) return;
    event.preventDefault();
    const column = (current < 0 ? 0 : current % columns) + (current < 0 ? 0 : step[0]);
    const row = current < 0 ? 0 : Math.floor(current / columns) + step[1];
    const inside = column >= 0 && column < columns && row >= 0 && row < cells.length / columns;
    if (inside) say(cells[row * columns + column]);
  });
}

addEventListener("DOMContentLoaded", () => {
  if (!window.vegaEmbed) return;
  for (const maps of document.querySelectorAll(".maps")) {
    maps.hidden = false;
    for (const figure of maps.querySelectorAll(".map")) drawMap(figure);
  }
});
