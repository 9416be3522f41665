// The page of `bpfree serve`: it asks each run that is shown, again with every change of the sample.

import { Card } from "./cards.js";
import { element, fetched } from "./common.js";
import { makeInputs } from "./inputs.js";

const SPOKEN_AFTER = 1000; // milliseconds without a change, before a screen reader hears the answers
const find = (id) => document.getElementById(id);

/** Ask one run. While a request is on its way, only the newest question waits. */
class Asker {
  constructor(run, changed) {
    this.run = run;
    this.changed = changed;
    this.isBusy = false;
    this.isShown = run.shown;
    this.next = null;
    this.last = null;
    this.card = new Card(run, () => this.ask(this.last));
    this.card.root.hidden = !run.shown;
    this.chipAnswer = element("span", { class: "chip-answer" });
    this.chip = element("button", { type: "button", class: "chip", "aria-pressed": String(run.shown), onclick: () => this.toggle() }, run.id, this.chipAnswer);
  }

  toggle() {
    this.isShown = !this.isShown;
    this.chip.setAttribute("aria-pressed", String(this.isShown));
    this.card.root.hidden = !this.isShown;
    if (this.isShown) this.ask(this.last);
    else this.chipAnswer.textContent = "";
    this.changed();
  }

  async ask(question) {
    this.last = question;
    if (!this.isShown || question === null) return;
    this.next = question;
    if (this.isBusy) return;
    this.isBusy = true;
    while (this.next !== null) {
      const now = this.next;
      this.next = null;
      await this.answer(now);
      this.chipAnswer.textContent = this.card.words().split(",")[0];
      this.changed();
    }
    this.isBusy = false;
  }

  async answer(question) {
    const { run, card } = this;
    const body = question.body ? question.body(run) : question.why;
    if (typeof body === "string") {
      card.empty(body);
      return;
    }
    const address = `/api/runs/${encodeURIComponent(run.id)}`;
    try {
      const told = await fetched(`${address}/predict`, body);
      card.show(told.answers[0], told.samples?.[0] ?? question.sample ?? null, question.truth);
      if (run.inside === null || this.next !== null) return;
      const inside = await fetched(`${address}/inside?noise=${card.noise.checked}`, body);
      if (this.next === null) card.showInside(inside.steps);
    } catch (error) {
      card.empty(error.message);
    }
  }
}

async function begin() {
  let facts;
  try {
    facts = await fetched("/api/runs");
  } catch (error) {
    find("lead").textContent = error.message;
    return;
  }
  find("version").textContent = `bpfree ${facts.version}`;
  let timer = null;
  const speak = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const words = askers.filter((each) => each.isShown && each.card.words()).map((each) => `${each.run.id}: ${each.card.words()}`);
      find("live").textContent = words.join("; ");
    }, SPOKEN_AFTER);
  };
  const askers = facts.runs.map((run) => new Asker(run, speak));
  find("chips").replaceChildren(...askers.map((each) => each.chip));
  find("cards").replaceChildren(...askers.map((each) => each.card.root));
  document.querySelector(".choice").hidden = askers.length < 2;
  const draws = facts.runs.some((run) => run.input.draws);
  find("lead").textContent = lead(askers.length, draws);
  makeInputs(facts.runs, find("tabs"), find("panels"), (question) => askers.forEach((each) => each.ask(question)));
  document.body.dataset.ready = "true";
}

function lead(count, draws) {
  const who = count === 1 ? "the net answers" : `${count} nets answer`;
  return draws ? `Draw, and ${who} while you draw. See how each of them comes to its answer.` : `Give a sample, and ${who}. See how each of them comes to its answer.`;
}

begin();
