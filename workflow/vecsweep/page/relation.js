"use strict";
// A relation: what may be said of each model, the numbers behind it, and the figures that show it.

const CONTROLS = ["rival", "unrelated", "random", "zero"];
const REACH = (row) => row.start_layer === row.end_layer ? `layer ${row.start_layer}` : `layers ${row.start_layer} to ${row.end_layer}`;

function words(method) {
  const [basis, count] = method.split("_");
  if (basis === "neurons") return count === "1" ? "its largest neuron" : `its ${count} largest neurons`;
  if (basis === "directions") return `along ${count} direction${count === "1" ? "" : "s"}`;
  return DATA.labels[method] ?? (method === "donor" ? "o-vectors of other donors" : method);
}

function crossing(found, count) {
  const lines = {};
  for (const [, , target, x, y, low, high] of found) lines[target] = { x, y, low, high };
  const row = count, x = { ...SHARES, ticks: SHARES.ticks };
  const labels = { title: "Mean reciprocal rank of argument and answer by depth", x: "depth, (layer + 1) / layers", y: "mean reciprocal rank" };
  return curves(lines, labels, x, SHARES, (svg, box, px) => {
    if (row.x === "yes")
      svg.append(make("line", { class: "mark", x1: px(row.depth), x2: px(row.depth), y1: box.top, y2: box.bottom }));
  });
}

function ofModel(task, model, level) {
  const row = DATA.findings.find((one) => one.task === task.task && one.model === model.model);
  const mine = (one) => one.task === task.task && one.model === model.model;
  const part = make("section", { id: `of-${model.model}`, "aria-label": model.model }, make("h3", { tabindex: "-1" }, `${model.model}: ${task.title}`));
  const said = DETAILS.claims.filter(mine);
  const right = `${row.correct_prompts} of ${row.prompts} prompts are answered correctly`;
  const first = row.argument_function === null ? "" : `; in ${(100 * row.argument_function).toFixed(0)} % the argument is on top of some layer before the answer (pattern argument-function)`;
  part.append(make("p", {}, `${right}${first}. `, { yes: "The curves make an X: the argument forms, then the answer overtakes it for good.",
    no: "No X: the argument does not form before an overtaking answer.", undecided: "Whether the argument forms before the answer is undecided.",
    few: "With fewer than 20 right answers there is no yes or no to an X.", "too few": "With fewer than 10 right answers there is no finding." }[row.x]));
  if (said.length) part.append(make("ul", { class: "claims" }, ...said.map((claim) =>
    make("li", {}, claim.domain === "out" ? "Out of its domain: " : "", claim.sentence))));
  const found = DETAILS.curves.filter((one) => one[0] === model.model && one[1] === task.task);
  part.append(make("h4", {}, `Argument and answer by depth, n = ${row.correct_prompts}`));
  if (found.length && row.correct_prompts) part.append(crossing(found, row),
    make("p", { class: "small" }, "After each layer; prompts answered correctly; bands: 95 %, bootstrap over prompts. Dashed line: the crossover of an X."));
  else part.append(make("p", {}, "No prompt was answered correctly."));
  const methods = DETAILS.methods.filter(mine);
  part.append(make("h4", {}, "Every method at its best" + (methods.length ? `, n = ${methods[0].prompts}` : "")));
  if (methods.length) {
    const rows = methods.map((one) => ({
      words: words(one.method), value: one.reciprocal_rank_after, low: one.reciprocal_rank_after_low,
      high: one.reciprocal_rank_after_high, control: CONTROLS.includes(one.method),
      note: number(one.reciprocal_rank_after) + (one.p_holm !== null && one.p_holm < 0.05 ? " *" : ""),
    }));
    const labels = { title: "Mean reciprocal rank of the answer with each method", x: "mean reciprocal rank of the answer", y: "" };
    const head = ["method", "after", "interval", "p (Holm)", "own among all", "setting"].map((one) => make("th", { scope: "col" }, one));
    const body = methods.map((one) => make("tr", {}, make("th", { scope: "row" }, words(one.method)),
      ...[number(one.reciprocal_rank_after), `${number(one.reciprocal_rank_after_low)} to ${number(one.reciprocal_rank_after_high)}`,
        one.p_holm === null ? "" : number(one.p_holm, 3), `${number(one.among_before)} → ${number(one.among_after)}`,
        `${one.mode}, ${REACH(one)}${one.source_layer === null ? "" : `, from ${one.source_layer}`}`].map((text) => make("td", {}, text))));
    part.append(dots(rows, labels, methods[0].reciprocal_rank_before),
      make("p", { class: "small" }, "In-domain test prompts in novel contexts; dashed: before; open: controls, which must not know the answer; a star: differs from the o-vector, p < 0.05 after Holm’s correction. Bars: 95 %, bootstrap."),
      make("details", {}, make("summary", {}, "The numbers"), make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Methods of ${model.model}` }, make("table", { class: "plain" },
        make("caption", {}, `By chance the own answer would stand at ${number(methods[0].among_chance)} among all.`), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)))));
  } else part.append(make("p", {}, task.injected ? "No train prompt is a donor of an o-vector, or none of its could be tested." : "The sweep’s config does not test vectors of this relation."));
  part.append(make("p", {}, "More: ", make("a", { href: `#prompts/${model.model}/${task.task}` }, "its prompts by layer"), ", rows of ",
    ...["findings", "patterns", "methods", "paper_comparison"].map((name, k) =>
      [k ? ", " : "", make("a", { href: `#tables/${name}/${task.task}` }, name)]).flat(), "."));
  return part;
}

let DETAILS = null; // unpacked when the first relation is shown

async function showRelation(name, model) {
  const task = DATA.tasks.find((one) => one.task === name) ?? DATA.tasks[0];
  const mine = went;
  DETAILS ??= JSON.parse(await unpacked(DATA.details));
  if (mine !== went) return;
  choose(get("relation-choice"), DATA.tasks.map((one) => [one.task, one.title]), task.task);
  get("head-relation").textContent = task.title;
  const shown = DATA.figures.filter((figure) => figure.tasks.includes(task.task));
  const place = get("relation-place");
  const drawn = `${task.task} ${innerWidth}`;
  if (place.dataset.drawn !== drawn) {
    place.replaceChildren(
      make("p", {}, `A ${task.kind} relation. A prompt:`), make("pre", { class: "text" }, task.example ?? "no prompt"),
      make("div", { class: "panels" }, ...DATA.models.map((one) => ofModel(task, one))),
      make("h3", {}, "Figures of the sweep that show this relation"), ...shown.map((figure) => shownFigure(figure, "h4")));
    place.dataset.drawn = drawn;
  }
  const asked = model && get(`of-${model}`);
  if (asked) { asked.scrollIntoView(); asked.querySelector("h3").focus({ preventScroll: true }); }
}

get("relation-choice").addEventListener("change", (event) => to("relation", event.target.value));
