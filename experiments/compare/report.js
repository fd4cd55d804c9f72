// The report's page: a table that sorts, openers that are filtered, dark and light. Everything shown is in the page already.

const $ = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------------- the table

const headers = [...$("table").tHead.rows[0].cells];
for (const header of headers) header.querySelector("button").addEventListener("click", () => sortBy(header));

/** Numbers begin with the highest, arms with the order they came in; again turns round. What is not known stays last. */
function sortBy(header) {
  const column = headers.indexOf(header);
  const first = column === 0 ? "ascending" : "descending";
  const isFirst = header.getAttribute("aria-sort") !== first;
  const order = isFirst ? first : first === "ascending" ? "descending" : "ascending";
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => Number(row.cells[column].dataset.value ?? NaN);
  const body = $("table").tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
  });
  body.append(...rows);
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  $("told").textContent = `Sorted by ${header.textContent}, ${order}`;
}

$("all-columns").addEventListener("change", () => $("table").classList.toggle("brief", !$("all-columns").checked));

// ------------------------------------------------------------------------------------------------- openers

const words = (element) => element?.textContent.toLowerCase() ?? "";
const scenes = [...document.querySelectorAll(".scene")].map((element) => ({
  element,
  cards: [...element.querySelectorAll(".card")].map((card) => ({
    card,
    arm: card.dataset.arm,
    text: [element.querySelector("h3"), element.querySelector(".greeting"), card.querySelector("h4"), card.querySelector(".opener")].map(words).join("\n"),
  })),
}));
const arms = [...document.getElementsByName("arm")];

/** Shows the openers of the ticked arms that hold every word of the filter, and the scenes that have any. */
function filter() {
  const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const ticked = new Set(arms.filter((box) => box.checked).map((box) => box.value));
  let [shown, inScenes, elsewhere] = [0, 0, 0];
  for (const { element, cards } of scenes) {
    let here = 0;
    for (const { card, arm, text } of cards) {
      const isFound = wanted.every((word) => text.includes(word));
      card.hidden = !(isFound && ticked.has(arm));
      here += !card.hidden;
      elsewhere += isFound && !ticked.has(arm);
    }
    element.hidden = !here;
    shown += here;
    inScenes += here > 0;
  }
  $("found").textContent = `${count(shown, "opener")} in ${count(inScenes, "scene")}` + (elsewhere ? `; ${elsewhere} more of arms that are not ticked` : "");
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

$("controls").addEventListener("input", filter);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("all-arms").addEventListener("click", () => {
  for (const box of arms) box.checked = true;
  filter();
});
$("controls").hidden = false;
filter();

// ------------------------------------------------------------------------------------------------- dark and light

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const theme = () => root.dataset.theme ?? (system.matches ? "dark" : "light");
const other = () => (theme() === "dark" ? "light" : "dark");
const name = () => ($("theme").textContent = other() === "dark" ? "Dark" : "Light");

$("theme").addEventListener("click", () => {
  root.dataset.theme = other();
  name();
});
system.addEventListener("change", name);
$("theme").hidden = false;
name();
