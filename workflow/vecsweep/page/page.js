"use strict";
// The frame of the page: its data, its parts by address (#figures/NAME), figures and tables.
// What comes from the data is set as text, never as HTML; captions alone are HTML, of the workflow's own files.
const DATA = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);

// An element: make("a", {href: "#x", class: "y"}, "text", child, ...).
function make(name, attributes = {}, ...children) {
  const svg = name in { svg: 1, g: 1, path: 1, line: 1, rect: 1, circle: 1, text: 1, title: 1, desc: 1 };
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const number = (value, digits = 2) =>
  value === null ? "n/a" : value.toFixed(digits).replace("-", "\u2212");

async function unpacked(pack) {
  const bytes = Uint8Array.from(atob(get(`pack-${pack}`).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).text();
}

function download(text, file, kind) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: address, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function button(words, run) {
  const made = make("button", { type: "button", class: "download" }, words);
  made.addEventListener("click", run);
  return made;
}

function choose(select, values, current) {
  select.replaceChildren(...values.map(([value, words]) => make("option", { value }, words)));
  select.value = current;
}

// Figures: unpacked when they come near the screen, or all that are shown before printing.
const DRAWN = {};
async function draw(image) {
  if (image.src) return;
  const figure = DATA.figures.find((one) => one.name === image.dataset.figure);
  DRAWN[figure.name] ??= unpacked(figure.pack).then((text) =>
    URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })));
  image.src = await DRAWN[figure.name];
}
const NEAR = new IntersectionObserver((seen) => {
  for (const entry of seen) if (entry.isIntersecting) { NEAR.unobserve(entry.target); draw(entry.target); }
}, { rootMargin: "600px" });
addEventListener("beforeprint", () => document.querySelectorAll("section:not([hidden]) img[data-figure]").forEach(draw));

function shownFigure(figure, level) {
  const caption = make("div");
  caption.innerHTML = figure.caption;
  if (figure.pack === null) {
    const file = `figures/${figure.name}.svg`;
    return make("figure", {}, make("figcaption", {}, make(level, {}, figure.title), caption,
      make("p", {}, "Too large for this page: ", make("a", { href: file }, file), ".")));
  }
  const image = make("img", { alt: `${figure.title}; described below`, "data-figure": figure.name });
  NEAR.observe(image);
  const save = button("Download SVG", async () =>
    download(await unpacked(figure.pack), `${figure.name}.svg`, "image/svg+xml"));
  return make("figure", { id: level === "h3" ? `figure-${figure.name}` : null },
    make(level, {}, figure.title),
    make("div", { class: "plate", tabindex: "0", role: "region", "aria-label": figure.title }, image),
    make("figcaption", {}, caption, save));
}

function showFigures(name) {
  const place = get("figures-place");
  if (!place.firstChild) {
    const groups = Map.groupBy ? Map.groupBy(DATA.figures, (f) => f.category) : new Map([["", DATA.figures]]);
    const list = make("ul");
    for (const figures of groups.values())
      for (const f of figures) list.append(make("li", {}, `${f.category}: `, make("a", { href: `#figures/${f.name}` }, f.title)));
    place.append(list, ...DATA.figures.map((figure) => shownFigure(figure, "h3")));
  }
  get(`figure-${name}`)?.scrollIntoView();
}

// Rows of a CSV text: quotes hold commas, lines, and doubled quotes.
function rowsOf(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\n]*))(,|\n|$)/g)) {
    rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === "\n") rows.push([]);
  }
  return rows.filter((row) => row.length > 1 || row[0]);
}

const isNumber = (value) => value !== "" && !Number.isNaN(Number(value));
const rounded = (value) =>
  isNumber(value) && value.includes(".") ? String(Number(Number(value).toPrecision(3))) : value;

async function showTable(name, task = "") {
  const mine = went;
  const about = DATA.tables.find((table) => table.name === name) ?? DATA.tables[0];
  choose(get("table-choice"), DATA.tables.map((t) => [t.name, `${t.name} (${t.rows} rows)`]), about.name);
  const place = get("table-place"), file = `tables/${about.name}.csv`;
  place.replaceChildren(make("p", {}, about.meaning));
  if (about.pack === null) {
    place.append(make("p", {}, "Too large for this page: ", make("a", { href: file }, file), "."));
    return;
  }
  const text = await unpacked(about.pack);
  if (mine !== went) return;
  // A search for capitals would find us_capitals too.
  const key = about.columns.findIndex(([title]) => title === "task"), chosen = task !== "" && key >= 0;
  const rows = rowsOf(text).slice(1).filter((row) => !chosen || row[key] === task);
  if (chosen) place.append(make("p", {}, `Rows of task ${task}. `, make("a", { href: `#tables/${about.name}` }, "Show all rows"), "."));
  const table = make("table", { class: "data" });
  place.append(button(`Download ${about.name}.csv`, () => download(text, `${about.name}.csv`, "text/csv")), table);
  const escape = DataTable.render.text().display;
  const columns = about.columns.map(([title, meaning, , counts], k) => {
    const values = rows.map((row) => row[k]);
    const numeric = counts && values.some(isNumber) && values.every((value) => value === "" || isNumber(value));
    const wide = values.some((value) => value.length > 60);
    return {
      title: make("span", { title: meaning }, title).outerHTML,
      type: numeric ? "num" : "string", className: wide ? "words" : "",
      render: (value, kind) => kind === "display" ? escape(counts ? rounded(value) : value)
        : kind === "filter" ? value : numeric ? (value === "" ? -Infinity : Number(value)) : value,
    };
  });
  new DataTable(table, {
    data: rows, columns, order: [], pageLength: 25, lengthMenu: [25, 100, 1000],
    language: { search: "Search", lengthMenu: "_MENU_ rows a page", emptyTable: "no rows" },
  });
  table.querySelectorAll("thead th").forEach((head) => head.setAttribute("scope", "col"));
  const words = about.columns.map(([column, meaning, unit]) =>
    [make("dt", {}, column), make("dd", {}, meaning + (unit ? ` (${unit})` : ""))]).flat();
  place.append(make("details", {}, make("summary", {}, "What the columns mean"), make("dl", { class: "key" }, ...words)));
}

// An address names a part, and what it shows: #prompts/MODEL/TASK/SET/ID.
const VIEWS = {
  findings: () => {}, about: () => {},
  relation: (...words) => showRelation(...words),
  prompts: (...words) => showPrompts(...words),
  figures: showFigures, tables: showTable,
};

let went = 0; // addresses so far: a view that waited for its pack draws nothing when a later one has come

async function go(moved) {
  const [first, ...words] = location.hash.slice(1).split("/").map(decodeURIComponent);
  const part = first in VIEWS ? first : first === "main" ? null : "findings";
  if (part === null) return;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${part}`;
  for (const link of document.querySelectorAll("nav a"))
    link.hash === `#${part}` ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  if (moved === true && part !== document.body.dataset.part) { scrollTo(0, 0); get(`head-${part}`).focus({ preventScroll: true }); }
  document.body.dataset.part = part;
  const mine = ++went;
  await VIEWS[part](...words);
  if (mine === went) document.body.dataset.shown = location.hash;
}

const to = (...words) => { location.hash = words.map(encodeURIComponent).join("/"); };
get("table-choice").addEventListener("change", (event) => to("tables", event.target.value));
addEventListener("hashchange", () => go(true));
addEventListener("DOMContentLoaded", () => {
  new DataTable("#matrix", {
    titleRow: 1,
    paging: false, info: false, order: [], searching: DATA.tasks.length > 15, autoWidth: false,
    language: { search: "Search" },
  });
  go(false);
});
