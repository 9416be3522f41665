// The card of a run: its answer, the probabilities as bars, and what is known inside the net.

import { element, percent, short, showPixels } from "./common.js";

const COLUMNS = 12; // classes that fit beside each other as columns
const ROWS = 8; // the most likely classes that are shown below each other
const LABELLED = 8; // steps that have room for their names
const TITLES = { walk: "From noise to the answer", heads: "What each layer knows", probes: "What each layer knows" };
const EXPLAINED = {
  walk: "Each block removes some noise from the label. The colours below are the values of the noisy label.",
  heads: "Each layer learned by a head of its own. This is what the heads answer.",
  probes: "These layers have no heads, so a linear read-out of each was fitted on training samples.",
};

export class Card {
  /** Make the card of a run; `asked` is called when the user wants the walk from another start. */
  constructor(run, asked) {
    this.run = run;
    this.steps = [];
    this.answer = null;
    this.truth = null;
    const title = element("h3", { id: `run-${run.id}` }, run.id);
    this.sees = element("canvas", { class: "sees", role: "img", "aria-label": `What the run ${run.id} sees`, title: "what this net sees", hidden: true });
    this.says = element("p", { class: "says" }, element("span", { class: "note" }, "–"));
    this.bars = element("ol", { class: "bars", role: "list" });
    this.rebuilt = element("canvas", { class: "rebuilt", role: "img", "aria-label": `What the run ${run.id} rebuilds`, hidden: true });
    this.now = element("p", { class: "now" }, "\u00a0");
    this.noise = element("input", { type: "checkbox", checked: true, onchange: () => asked() });
    this.inside = this.makeInside();
    this.root = element(
      "article",
      { class: run.rule === "backprop" ? "card baseline" : "card", "aria-labelledby": `run-${run.id}` },
      element("header", {}, element("div", {}, title, element("p", { class: "note" }, this.about())), this.sees),
      this.says,
      run.classes.length ? this.now : null,
      this.bars,
      this.rebuilt,
      this.inside,
    );
    this.makeBars();
  }

  about() {
    const { rule, net, data, metrics } = this.run;
    const score = metrics.accuracy !== undefined ? `${percent(metrics.accuracy)} on test samples` : null;
    const loss = score === null && metrics.loss !== undefined ? `test loss ${short(metrics.loss)}` : score;
    return [rule === "backprop" ? "backprop, to compare with" : rule, net, data, loss].filter(Boolean).join(" · ");
  }

  makeBars() {
    const { classes } = this.run;
    this.upright = classes.length <= COLUMNS && classes.every((name) => name.length <= 2);
    this.bars.classList.toggle("upright", this.upright);
    this.bars.hidden = classes.length === 0;
    this.items = Array.from({ length: this.upright ? classes.length : Math.min(ROWS, classes.length) }, () => {
      const parts = ["name", "track", "value"].map((name) => element("span", { class: name }));
      const fill = element("span", { class: "fill" });
      parts[1].append(fill);
      const item = element("li", {}, ...parts);
      this.bars.append(item);
      return { item, name: parts[0], value: parts[2], fill };
    });
    this.showBars(null);
  }

  makeInside() {
    const { inside, inside_why: why, id } = this.run;
    if (inside === null) return element("p", { class: "note inside" }, why);
    this.slider = element("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": `${TITLES[inside]}, ${id}`, disabled: true, oninput: () => this.showStep() });
    this.path = element("div", { class: "path", "aria-hidden": "true" });
    this.z = element("div", { class: "z", role: "img", hidden: true });
    const start = element("label", { class: "check" }, this.noise, "start from noise");
    const explained = element("p", { class: "note" }, EXPLAINED[inside]);
    return element("div", { class: "inside" }, element("h4", {}, TITLES[inside]), explained, this.path, this.slider, this.z, inside === "walk" ? start : null);
  }

  /** Show why there is no answer. */
  empty(why) {
    this.answer = null;
    this.steps = [];
    this.says.replaceChildren(element("span", { class: "note" }, why));
    this.showBars(null);
    this.sees.hidden = true;
    this.rebuilt.hidden = true;
    this.showPath();
  }

  /** Show an answer, the sample that the net saw, and the true class if it is known. */
  show(answer, sample, truth) {
    [this.answer, this.truth] = [answer, truth];
    const { shape, low, high, kind, dtype } = this.run.input;
    if (kind === "image" && sample) {
      showPixels(this.sees, sample, low, high);
      this.sees.hidden = false;
    }
    const isImage = Array.isArray(answer.values) && answer.error !== undefined && shape.length === 3;
    this.rebuilt.hidden = !isImage;
    if (isImage) showPixels(this.rebuilt, answer.values, dtype === "uint8" ? 0 : low, dtype === "uint8" ? 1 : high);
    this.showAnswer(answer);
    if (this.steps.length) return;
    this.showBars(answer.probabilities ?? null);
    if (answer.label !== undefined) this.now.textContent = "answer of the net";
  }

  showAnswer(answer) {
    const parts = [];
    if (answer.label !== undefined) {
      parts.push(element("b", {}, answer.label), element("span", {}, percent(answer.probabilities[answer.index])));
      if (this.truth !== null) {
        const right = this.truth === answer.label;
        parts.push(element("span", { class: right ? "right" : "wrong" }, right ? "✓ right" : `✗ it is ${this.truth}`));
      }
    } else if (answer.labels !== undefined) {
      parts.push(element("b", {}, answer.labels.join(", ") || "none"));
    } else if (answer.error !== undefined) {
      parts.push(element("span", {}, `mean squared error ${short(answer.error)}`));
    } else {
      parts.push(element("b", {}, numbers(answer.values)));
      if (this.truth !== null) parts.push(element("span", { class: "note" }, `true: ${numbers(this.truth)}`));
    }
    this.says.replaceChildren(...parts);
  }

  /** Return the answer in words, for the summary and for screen readers. */
  words() {
    const { answer } = this;
    if (answer === null) return "";
    if (answer.label !== undefined) return `${answer.label}, ${percent(answer.probabilities[answer.index])}`;
    return this.says.textContent;
  }

  /** Show probabilities; null for none. */
  showBars(probabilities) {
    const { classes } = this.run;
    const order = classes.map((_, index) => index);
    if (!this.upright && probabilities) order.sort((a, b) => probabilities[b] - probabilities[a]);
    const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : null;
    this.items.forEach(({ item, name, value, fill }, place) => {
      const share = probabilities ? probabilities[order[place]] : 0;
      name.textContent = classes[order[place]];
      value.textContent = probabilities ? percent(share) : "";
      fill.style.setProperty("--share", share);
      item.title = probabilities ? `${name.textContent}: ${percent(share)}` : "";
      item.classList.toggle("best", order[place] === best);
    });
  }

  /** Show the steps inside the net; the slider stays at its end, or where the user has left it. */
  showInside(steps) {
    const wasAtEnd = !this.steps.length || Number(this.slider.value) >= this.steps.length - 1;
    this.steps = steps;
    this.slider.max = String(steps.length - 1);
    if (wasAtEnd) this.slider.value = this.slider.max;
    this.showPath();
    this.showStep();
  }

  showPath() {
    if (!this.path) return;
    this.slider.disabled = !this.steps.length;
    if (!this.steps.length) this.now.textContent = "\u00a0";
    this.z.hidden = true;
    this.path.replaceChildren(
      ...this.steps.map((step, place) => {
        const { label, index, probabilities } = step.answer;
        const share = element("span", { class: "guess" }, label ?? "·");
        const name = this.steps.length <= LABELLED ? element("span", { class: "place" }, step.name.replace(/^after (block|step) /, "")) : null;
        share.style.setProperty("--share", probabilities ? probabilities[index] : 0);
        return element("button", { type: "button", tabindex: "-1", title: step.name, onclick: () => this.go(place) }, share, name);
      }),
    );
  }

  go(place) {
    this.slider.value = String(place);
    this.showStep();
  }

  showStep() {
    const place = Number(this.slider.value);
    const step = this.steps[place];
    if (!step) return;
    const { answer, name, z } = step;
    const where = this.run.inside === "walk" && this.noise.checked && place > 0 ? name.replace("after", "from noise,") : name;
    const words = (answer.label === undefined ? where : `${where}: ${answer.label}, ${percent(answer.probabilities[answer.index])}`);
    this.now.textContent = name === "answer" ? "answer of the net" : words;
    this.slider.setAttribute("aria-valuetext", words);
    [...this.path.children].forEach((cell, at) => cell.classList.toggle("here", at === place));
    this.showBars(answer.probabilities ?? null);
    if (answer.values && answer.error !== undefined) {
      const { dtype, low, high } = this.run.input;
      showPixels(this.rebuilt, answer.values, dtype === "uint8" ? 0 : low, dtype === "uint8" ? 1 : high);
      this.rebuilt.hidden = false;
    }
    this.showZ(z);
  }

  /** Show the point that NoProp denoises, a cell for each value: blue above 0, orange below. */
  showZ(z) {
    this.z.hidden = !z;
    if (!z) return;
    this.z.setAttribute("aria-label", `The point z: ${z.slice(0, 16).map(short).join(", ")}`);
    const most = Math.max(1, ...z.map(Math.abs));
    this.z.replaceChildren(
      ...z.map((value) => {
        const cell = element("i", { class: value < 0 ? "below" : "above", title: short(value) });
        cell.style.setProperty("--share", Math.abs(value) / most);
        return cell;
      }),
    );
  }
}

/** Return numbers as text; of a sequence the last values. */
function numbers(values) {
  if (!Array.isArray(values)) return short(values);
  if (Array.isArray(values[0])) return numbers(values[values.length - 1]);
  return values.slice(0, 6).map(short).join(", ") + (values.length > 6 ? ", …" : "");
}
