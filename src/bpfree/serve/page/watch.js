// The page of `bpfree watch`: it asks every second for news of the runs.

import { chart } from "./chart.js";
import { duration, element, fetched, metric, short } from "./common.js";

const EVERY = 1000; // milliseconds
const find = (id) => document.getElementById(id);
const STATES = { training: "training", finished: "finished", stopped: "stopped", silent: "no news" };
const COSTS = {
  wall_seconds: ["time", duration],
  cpu_seconds: ["CPU time", duration],
  samples_per_second: ["samples a second", short],
  parameters: ["parameters", (value) => value.toLocaleString("en")],
  queries: ["forward passes", short],
  energy_joules: ["energy", (value) => `${short(value)} J`],
};
const SHOWN = 3; // metrics on a card

/** Return the names and values of a run's metrics: for each metric its values in all splits. */
function metricsOf(run) {
  const names = new Set(["accuracy", "loss", ...Object.values(run.latest).flatMap(Object.keys)]);
  const rows = [...names].map((name) => {
    const values = Object.entries(run.latest).filter(([, values]) => name in values);
    return [name.replaceAll("_", " "), values.map(([split, values]) => `${split}\u00a0${metric(name, values[name])}`).join(" · ")];
  });
  return rows.filter(([, text]) => text).slice(0, SHOWN);
}

/** The card of a run: it is changed and not made anew, so that a screen reader keeps its place. */
class RunCard {
  constructor(run) {
    this.state = element("span", { class: "state" });
    this.bar = element("progress", { max: "1", "aria-label": `Progress of ${run.id}` });
    this.done = element("span");
    this.left = element("span", { class: "note" });
    this.facts = element("dl", { class: "facts" });
    this.notes = element("p", { class: "note" });
    const about = [run.about.rule, run.about.net, run.about.data, `seed ${run.about.seed}`].join(" · ");
    this.root = element(
      "article",
      { class: "card" },
      element("header", { class: "plain" }, element("div", {}, element("h3", {}, run.id), element("p", { class: "note" }, about)), this.state),
      this.bar,
      element("p", { class: "now two" }, this.done, this.left),
      this.facts,
      this.notes,
    );
  }

  /** Show what changes from second to second. */
  tick(run) {
    const left = run.seconds_left;
    this.left.textContent =
      run.state === "training" ? (left === null || left === undefined ? "time left: not known yet" : `${duration(left)} left`) : run.state === "silent" ? `nothing for ${duration(run.age)}` : "";
  }

  show(run) {
    this.state.textContent = STATES[run.state];
    this.state.className = `state ${run.state}`;
    this.bar.hidden = run.epochs === null;
    if (run.epochs !== null) this.bar.value = run.state === "finished" ? 1 : run.epoch / run.epochs;
    this.done.textContent = `epoch ${run.epoch}${run.epochs === null ? "" : ` of ${run.epochs}`}`;
    const costs = Object.entries(COSTS).filter(([key]) => key in run.cost).map(([key, [name, text]]) => [name, text(run.cost[key])]);
    const fact = (kind) => ([name, value]) => element("div", { class: kind }, element("dt", {}, name), element("dd", {}, value));
    this.facts.replaceChildren(...metricsOf(run).map(fact("whole")), ...costs.map(fact("")));
    this.notes.textContent = [run.why && `It stopped: ${run.why}.`, ...run.notes].filter(Boolean).join(" ");
    this.notes.hidden = !this.notes.textContent;
  }
}

/** Return the charts of the metrics: of one run in training and validation, of several runs beside each other. */
function curves(runs) {
  const titles = [...new Set(runs.flatMap((run) => run.curves.map((curve) => curve.title)))].filter((title) => title !== "loss of each layer");
  return titles.map((title) => {
    const found = runs.map((run, number) => ({ run, number, curve: run.curves.find((curve) => curve.title === title) })).filter((each) => each.curve);
    const lines =
      runs.length === 1
        ? found[0].curve.lines.map((line) => ({ ...line, colour: 0, dashed: line.name === "train" }))
        : found.flatMap(({ run, number, curve }) => curve.lines.slice(0, 1).map((line) => ({ ...line, name: line.name === "validation" ? run.id : `${run.id} (${line.name})`, colour: number })));
    return chart({ title: title.replace("_", " "), x: "epoch", y: found[0].curve.y, lines });
  });
}

/** Return the charts of one run by layer: losses, and what trackers measured. */
function layers(run) {
  const charts = [...run.curves.filter((curve) => curve.title === "loss of each layer"), ...run.trackers];
  return charts.map((curve) => chart({ ...curve, title: curve.title.replaceAll("_", " "), lines: curve.lines.map((line, colour) => ({ ...line, colour })) }));
}

const cards = new Map();
let mark = null;

function show(told) {
  find("version").textContent = `bpfree ${told.version}`;
  for (const run of told.runs) {
    if (!cards.has(run.id)) cards.set(run.id, new RunCard(run));
    cards.get(run.id).tick(run);
  }
  if (told.mark === mark) return;
  mark = told.mark;
  for (const run of told.runs) cards.get(run.id).show(run);
  find("runs").replaceChildren(...told.runs.map((run) => cards.get(run.id).root));
  const drawn = curves(told.runs);
  find("curves").replaceChildren(...drawn);
  find("curves-section").hidden = drawn.length === 0;
  find("curves-note").textContent = told.runs.length > 1 ? "In validation, or in training for runs without validation." : "";
  const open = new Set([...document.querySelectorAll("#layers details")].filter((each) => !each.open).map((each) => each.dataset.run));
  const sections = told.runs.map((run) => [run, layers(run)]).filter(([, charts]) => charts.length);
  find("layers").replaceChildren(
    ...sections.map(([run, charts]) => element("details", { open: !open.has(run.id), "data-run": run.id }, element("summary", {}, run.id), element("div", { class: "charts" }, ...charts))),
  );
  find("layers-section").hidden = sections.length === 0;
  lead(told.runs);
}

function lead(runs) {
  const count = (state) => runs.filter((run) => run.state === state).length;
  const parts = Object.entries(STATES).map(([state, words]) => [count(state), words]).filter(([many]) => many);
  const text = parts.map(([many, words]) => `${many} ${words}`).join(", ");
  find("lead").textContent = `${runs.length === 1 ? "1 run" : `${runs.length} runs`}: ${text}. The page follows by itself.`;
  if (find("live").textContent !== text) find("live").textContent = text;
}

async function ask() {
  try {
    if (!document.hidden) show(await fetched("/api/watch"));
    document.body.dataset.ready = "true";
  } catch (error) {
    find("lead").textContent = error.message;
    mark = null;
  }
  setTimeout(ask, EVERY);
}

ask();
