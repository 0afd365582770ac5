"use strict";
// One prompt: the top tokens at every layer and site, ranks and stages of argument and answer.

const SITES = { resid_mid: "after attention", attention_alone: "attention alone", ffn_alone: "FFN alone", resid_post: "after the FFN" };
const CELLS = {};
// Ranks on a log axis, the first on top, down to the decade of the worst.
function logAxis(worst) {
  const decades = Math.max(1, Math.ceil(Math.log10(worst)));
  const ticks = Array.from({ length: decades + 1 }, (_, k) => [10 ** k, (10 ** k).toLocaleString("en")]);
  return { from: 0, to: decades, of: (rank) => decades - Math.log10(rank), ticks };
}
let measure = "rank";

// A token that can be seen: ␣ for a space, ⏎ for a new line, ⟨00A0⟩ for other signs without a shape.
const code = (sign) => `⟨${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replace(/[\p{C}\p{Z}]/gu, code);

function tokens(cell, prompt, k) {
  const [argument, answers] = prompt.slice(12);
  return cell.top[k].map((token, place) => {
    const kind = answers.includes(token) ? " answer" : token === argument ? " argument" : "";
    const p = cell.percent[k][place], share = p < 1 ? "<1" : String(p);
    const made = make("span", { class: `token${place ? "" : " top"}${kind}` }, visible(cell.words[token]));
    if (kind) made.setAttribute("title", `the${kind}`);
    return make("span", { class: "entry" }, made, make("span", { class: "others" }, ` ${share}`));
  });
}

function stageOf(prompt, layer) {
  const [first, last, applied, site] = prompt.slice(7, 11);
  const formation = first !== null && layer >= first && layer <= last;
  if (layer === applied) return ["function", `${formation ? "argument, then " : ""}function: ${site === "ffn" ? "FFN" : site}`];
  if (formation) return ["formation", "argument formation"];
  if (applied !== null && layer > applied) return ["saturation", "saturation"];
  return ["", ""];
}

function shownPrompt(cell, index) {
  const prompt = cell.prompts[index], sites = cell.sites, layers = cell.top.length / cell.prompts.length / sites.length;
  const start = index * layers * sites.length;
  const [, id, split, text, argument, answer, pattern, first, last, applied, site, flip] = prompt;
  const head = make("tr", {}, make("th", { scope: "col", class: "n" }, make("abbr", { title: "layer" }, "L")), make("th", { scope: "col", class: "stagecol" }, "stage"),
    ...sites.map((name) => make("th", { scope: "col" }, SITES[name])), make("th", { scope: "col", class: "rank argument" }, "argument"), make("th", { scope: "col", class: "rank answer" }, "answer"));
  const rows = [];
  for (let layer = 0; layer < layers; layer++) {
    const k = start + layer * sites.length, end = k + sites.length - 1, [kind, said] = stageOf(prompt, layer);
    rows.push(make("tr", { class: layer === applied ? "applied" : null }, make("th", { scope: "row", class: "n" }, String(layer)),
      make("td", { class: `stagecol ${kind}` }, said),
      ...sites.map((name, s) => {
        const made = tokens(cell, prompt, k + s), flat = make("td", { class: "state" }, ...made.flatMap((one) => [one, " "]));
        flat.style.setProperty("--p", Math.sqrt(cell.percent[k + s][0] / 100));
        return flat;
      }),
      make("td", { class: "rank" }, (cell.argument[end] + 1).toLocaleString("en")), make("td", { class: "rank" }, (cell.answer[end] + 1).toLocaleString("en"))));
  }
  const span = (a, b) => a === b ? `layer ${a}` : `layers ${a} to ${b}`;
  const found = [pattern === "incorrect" ? "Answered wrongly." : `Answered correctly; pattern ${pattern}.`,
    first !== null ? `Argument formation: ${span(first, last)}.` : "The argument is on top nowhere before the answer.",
    applied !== null ? `Function application: layer ${applied}, by ${site === "ffn" ? "the FFN" : site === "attention" ? "attention" : site}.` : "",
    flip !== null ? `The FFN of layer ${flip} turns the argument into the answer.` : ""].filter(Boolean).join(" ");
  return make("div", {},
    make("p", {}, make("b", { class: "argument" }, argument), " → ", make("b", { class: "answer" }, answer.replaceAll("|", " or ")), `. ${found} `,
      make("span", { class: "legend" }, `Row ${id} of the relation, split ${split}.`)),
    make("pre", { class: "text" }, text),
    make("div", { class: "layers" },
      make("div", {}, make("p", { class: "legend" }, "Top tokens with their probability in %, and ranks of argument and answer after the layer (1 is the top). Shading: probability of the top token. ",
        make("span", { class: "token argument" }, "argument"), " dashed, ", make("span", { class: "token answer" }, "answer"), " solid. ␣ is a space, ⏎ a new line."),
        make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Top tokens by layer" },
          make("table", {}, make("caption", { class: "unseen" }, "Top tokens by layer"), make("thead", {}, head), make("tbody", {}, ...rows)))),
      make("div", { class: "aside" }, chart(cell, prompt, start, layers))));
}

function chart(cell, prompt, start, layers) {
  const size = cell.sites.length, spread = (list) => {
    const x = [], y = [];
    for (let layer = 0; layer < layers; layer++)
      for (let s = 0; s < size; s++) {
        if (size > 2 && s < size - 1) continue; // parallel blocks: what each adds alone is no state on the way
        x.push(layer + (s === size - 1 ? 1 : 0.5));
        y.push(list[start + layer * size + s] + 1);
      }
    return { x, y };
  };
  const lines = { argument: spread(cell.argument), answer: spread(cell.answer) };
  if (measure === "reciprocal") for (const line of Object.values(lines)) line.y = line.y.map((rank) => 1 / rank);
  const every = layers > 20 ? 5 : layers > 10 ? 3 : 1;
  const x = { from: 0.5, to: layers, ticks: Array.from({ length: layers }, (_, k) => [k + 1, String(k)]).filter((_, k) => k % every === 0) };
  const labels = { title: "Rank of argument and answer by layer", x: "after layer", y: measure === "rank" ? "rank, log axis" : "reciprocal rank" };
  const [first, last, applied] = prompt.slice(7, 10);
  const made = curves(lines, labels, x, measure === "rank" ? logAxis(Math.max(...lines.argument.y, ...lines.answer.y)) : SHARES, (svg, box, px) => {
    const stage = (from, to, words) => {
      const left = Math.max(box.left, px(from)), right = px(to);
      svg.append(make("rect", { class: "stage", x: left, width: Math.max(1, right - left), y: box.top, height: box.bottom - box.top }, make("title", {}, words)));
    };
    if (first !== null) stage(first, last + 1, "argument formation");
    if (applied !== null) svg.append(make("line", { class: "mark", x1: px(applied + 1), x2: px(applied + 1), y1: box.top, y2: box.bottom }));
  }, 450);
  const other = button(measure === "rank" ? "Show reciprocal ranks" : "Show ranks", () => {
    measure = measure === "rank" ? "reciprocal" : "rank";
    const fresh = chart(cell, prompt, start, layers);
    block.replaceWith(fresh);
    fresh.querySelector("button").focus();
  });
  const block = make("div", {}, made, make("p", { class: "small" }, "Shaded: argument formation. Dashed: function application."), other);
  return block;
}

async function showPrompts(model, task, set, id) {
  const held = DATA.cells.filter((one) => one.model === model), models = [...new Set(DATA.cells.map((one) => one.model))];
  if (!models.length) { get("prompt-place").textContent = "The sweep holds no prompts."; return; }
  if (!held.length) return showPrompts(models.at(-1), task, set, id);
  const found = held.find((one) => one.task === task) ?? held[0];
  const title = (name) => DATA.tasks.find((one) => one.task === name).title;
  choose(get("prompt-model"), models.map((one) => [one, one]), model);
  choose(get("prompt-task"), held.map((one) => [one.task, title(one.task)]), found.task);
  const mine = went, cell = CELLS[found.pack] ??= JSON.parse(await unpacked(found.pack));
  if (mine !== went) return;
  const sets = [...new Set(cell.prompts.map((one) => one[0]))];
  set = sets.includes(set) ? set : sets[0];
  const list = cell.prompts.map((one, k) => [k, one]).filter(([, one]) => one[0] === set);
  // Without a prompt asked for: the first that shows all stages, as figure `example`.
  const best = list.find(([, one]) => one[6] === "argument-function" && one[10] === "ffn") ?? list.find(([, one]) => one[6] !== "incorrect") ?? list[0];
  const [index, prompt] = list.find(([, one]) => String(one[1]) === id) ?? best;
  choose(get("prompt-set"), sets.map((one) => [one, one]), set);
  const kinds = { incorrect: "wrong", direct: "right, direct", "argument-function": "right, argument first" };
  choose(get("prompt-choice"), list.map(([, one]) => [one[1], `${one[4]} → ${one[5].replaceAll("|", " or ")} (${kinds[one[6]]})`]), prompt[1]);
  const place = list.findIndex(([k]) => k === index);
  get("prompt-before").disabled = place === 0;
  get("prompt-after").disabled = place === list.length - 1;
  get("prompt-place").replaceChildren(shownPrompt(cell, index));
  get("prompt-said").textContent = `Prompt ${place + 1} of ${list.length}: ${prompt[4]}`;
}

function asked(step = 0) {
  const select = get("prompt-choice");
  const option = select.options[select.selectedIndex + step];
  to("prompts", get("prompt-model").value, get("prompt-task").value, get("prompt-set").value, option ? option.value : "");
}
for (const id of ["prompt-model", "prompt-task"])
  get(id).addEventListener("change", () => to("prompts", get("prompt-model").value, get("prompt-task").value));
get("prompt-set").addEventListener("change", () => asked());
get("prompt-choice").addEventListener("change", () => asked());
get("prompt-before").addEventListener("click", () => asked(-1));
get("prompt-after").addEventListener("click", () => asked(1));
