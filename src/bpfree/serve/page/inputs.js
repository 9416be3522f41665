// The ways to give a sample: a drawing, an image, a row of a table, numbers, or a test sample. Each is a tab.
//
// A question has `body(run)`, which returns the body of the request for a run, or a text that says why the run cannot be
// asked so; and `truth`, the true class of a test sample, or null.

import { Drawing } from "./drawing.js";
import { element, fetched, showPixels } from "./common.js";

const FEW = 32; // values of a sample that get a field each

/** Return the options of `fetch` for a JSON body. */
function json(value) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) };
}

class DrawingTab {
  static title = "Draw";
  static fits = (run) => run.input.draws;

  constructor(runs, changed) {
    this.drawing = new Drawing(changed);
    this.root = this.drawing.root;
  }

  question() {
    const drawing = this.drawing.rows();
    if (drawing === null) return { why: "–" };
    return { truth: null, body: (run) => (run.input.draws ? json({ drawing }) : "This run does not take drawings.") };
  }
}

class FileTab {
  static title = "Image";
  static fits = (run) => run.input.files;

  constructor(runs, changed) {
    this.changed = changed;
    this.file = null;
    this.preview = element("img", { class: "preview", alt: "The chosen image", hidden: true });
    this.input = element("input", { type: "file", accept: "image/*", class: "unseen", id: "file", onchange: () => this.take(this.input.files[0]) });
    this.words = element("span", {}, "Choose an image, or drop one here");
    this.zone = element(
      "label",
      { class: "drop", for: "file", ondragover: (event) => this.over(event, true), ondragleave: (event) => this.over(event, false), ondrop: (event) => this.drop(event) },
      this.preview,
      this.words,
    );
    this.isDrawing = element("input", { type: "checkbox", checked: true, onchange: () => changed() });
    const drawn = runs.some((run) => run.input.draws);
    this.root = element(
      "div",
      {},
      this.input,
      this.zone,
      drawn ? element("label", { class: "check" }, this.isDrawing, "It shows ink on paper: find the ink and centre it") : null,
      element("p", { class: "note" }, "The image does not leave this machine, unless the server runs on another one."),
    );
  }

  over(event, isOver) {
    event.preventDefault();
    this.zone.classList.toggle("over", isOver);
  }

  drop(event) {
    this.over(event, false);
    this.take(event.dataTransfer.files[0]);
  }

  take(file) {
    if (!file) return;
    this.file = file;
    if (this.preview.src) URL.revokeObjectURL(this.preview.src);
    this.preview.src = URL.createObjectURL(file);
    this.preview.hidden = false;
    this.words.textContent = file.name;
    this.changed();
  }

  question() {
    const { file } = this;
    if (file === null) return { why: "–" };
    const asDrawing = String(this.isDrawing.checked);
    return {
      truth: null,
      body: (run) => {
        if (!run.input.files) return "This run does not take images.";
        const form = new FormData();
        form.append("file", file);
        form.append("as_drawing", asDrawing);
        return { method: "POST", body: form };
      },
    };
  }
}

class RowTab {
  static title = "Row";
  static fits = (run) => run.input.kind === "table";

  constructor(runs, changed) {
    const columns = new Map();
    for (const run of runs) for (const column of run.input.columns ?? []) columns.set(column.name, column);
    this.fields = [...columns.values()].map((column, number) => {
      const id = `column-${number}`;
      const field = column.values
        ? element("select", { id, onchange: () => changed() }, ...column.values.map((value) => element("option", {}, value)))
        : element("input", { id, type: "number", step: "any", value: rounded(column.mean), oninput: () => changed() });
      return { column, field, root: element("div", { class: "field" }, element("label", { for: id }, column.name), field) };
    });
    const note = "Numbers begin at the mean of the training rows.";
    this.root = element("div", {}, element("div", { class: "fields" }, ...this.fields.map((each) => each.root)), element("p", { class: "note" }, note));
  }

  question() {
    const missing = this.fields.find(({ field }) => field.value === "");
    if (missing) return { why: `Give a value for ${missing.column.name}.` };
    const row = Object.fromEntries(this.fields.map(({ column, field }) => [column.name, column.values ? field.value : Number(field.value)]));
    return { truth: null, body: (run) => (run.input.columns ? json({ rows: [row] }) : "This run does not take rows of a table.") };
  }
}

function rounded(value) {
  return value === null || value === undefined ? "0" : String(Number(value.toPrecision(3)));
}

class NumbersTab {
  static title = "Numbers";
  static fits = (run) => run.input.kind === "numbers" && !run.input.inputs;

  constructor(runs, changed) {
    this.shape = runs.find(NumbersTab.fits).input.shape;
    this.isShort = this.shape.length === 1 && this.shape[0] <= FEW;
    if (this.isShort) {
      this.fields = Array.from({ length: this.shape[0] }, (_, at) =>
        element("input", { id: `value-${at}`, type: "number", step: "any", value: "0", oninput: () => changed() }),
      );
      const labelled = this.fields.map((field, at) => element("div", { class: "field" }, element("label", { for: field.id }, `value ${at + 1}`), field));
      this.root = element("div", { class: "fields" }, ...labelled);
    } else {
      this.text = element("textarea", { id: "numbers", rows: "8", spellcheck: "false", oninput: () => changed() });
      this.text.value = JSON.stringify(zeros(this.shape));
      const label = element("label", { for: "numbers" }, `One sample of the shape [${this.shape.join(", ")}], as JSON`);
      this.root = element("div", { class: "field" }, label, this.text);
    }
  }

  question() {
    let sample;
    if (this.isShort) {
      sample = this.fields.map((field) => (field.value === "" ? NaN : Number(field.value)));
      if (sample.some(Number.isNaN)) return { why: "Give a number in each field." };
    } else {
      try {
        sample = JSON.parse(this.text.value);
      } catch {
        return { why: "The text is not JSON yet." };
      }
    }
    return { truth: null, body: (run) => (sameShape(run.input.shape, this.shape) ? json({ samples: [sample] }) : "This run takes samples of another shape.") };
  }
}

function zeros([length, ...rest]) {
  return Array.from({ length }, () => (rest.length ? zeros(rest) : 0));
}

function sameShape(a, b) {
  return a.length === b.length && a.every((side, at) => side === b[at]);
}

class TestTab {
  static title = "Test sample";
  static fits = (run) => run.tests > 0;

  constructor(runs, changed) {
    this.changed = changed;
    this.taken = null;
    const sets = new Map();
    for (const run of runs.filter(TestTab.fits)) {
      const key = `${run.data} [${run.input.shape.join(", ")}]`;
      if (!sets.has(key)) sets.set(key, run);
    }
    this.runs = [...sets.values()];
    this.choice = element("select", { id: "set", onchange: () => this.take() }, ...[...sets].map(([key], at) => element("option", { value: at }, key)));
    this.preview = element("canvas", { class: "preview", role: "img", "aria-label": "The test sample", hidden: true });
    this.truth = element("p", { class: "now", role: "status" }, "–");
    this.root = element(
      "div",
      {},
      sets.size > 1 ? element("div", { class: "field" }, element("label", { for: "set" }, "Data"), this.choice) : null,
      element("div", { class: "buttons" }, element("button", { type: "button", class: "main", onclick: () => this.take() }, "Take another sample")),
      this.preview,
      this.truth,
      element("p", { class: "note" }, "The runs did not see test samples while they learned."),
    );
  }

  /** Called when the tab is opened: the first sample comes by itself. */
  open() {
    if (this.taken === null) this.take();
  }

  async take() {
    const run = this.runs[Number(this.choice.value) || 0];
    try {
      this.taken = { run, ...(await fetched(`/api/runs/${encodeURIComponent(run.id)}/sample`)) };
    } catch (error) {
      this.truth.textContent = error.message;
      return;
    }
    const { input } = run;
    this.preview.hidden = input.kind !== "image";
    if (input.kind === "image") showPixels(this.preview, this.taken.sample, input.low, input.high);
    const { label, answer, index } = this.taken;
    const truth = typeof label === "string" ? `it is ${label}` : typeof answer === "number" ? `true: ${answer}` : "";
    this.truth.textContent = `Number ${index}${truth ? `: ${truth}` : ""}`;
    this.changed();
  }

  question() {
    if (this.taken === null) return { why: "–" };
    const { run: from, sample, label, answer } = this.taken;
    const fits = (run) => run.data === from.data && sameShape(run.input.shape, from.input.shape);
    return { truth: label ?? answer ?? null, sample, body: (run) => (fits(run) ? json({ samples: [sample] }) : `This run was not trained on ${from.data}.`) };
  }
}

const TABS = [DrawingTab, RowTab, NumbersTab, FileTab, TestTab];

/** Fill the tabs for the runs. `asked` is called with each new question. Returns a function that gives the present one. */
export function makeInputs(runs, tabs, panels, asked) {
  const made = TABS.filter((Tab) => runs.some(Tab.fits)).map((Tab, number) => {
    const tab = new Tab(runs, () => asked(tab.question()));
    tab.button = element("button", { type: "button", role: "tab", id: `tab-${number}`, "aria-controls": `panel-${number}` }, Tab.title);
    tab.panel = element("div", { role: "tabpanel", id: `panel-${number}`, "aria-labelledby": `tab-${number}` }, tab.root);
    return tab;
  });
  let current = null;
  const open = (tab) => {
    current = tab;
    for (const each of made) {
      const isOpen = each === tab;
      each.button.setAttribute("aria-selected", String(isOpen));
      each.button.tabIndex = isOpen ? 0 : -1;
      each.panel.hidden = !isOpen;
    }
    asked(tab.question());
    tab.open?.();
  };
  made.forEach((tab, number) => {
    tab.button.addEventListener("click", () => open(tab));
    tab.button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = made[(number + step + made.length) % made.length];
      open(next);
      next.button.focus();
    });
  });
  tabs.replaceChildren(...made.map((tab) => tab.button));
  tabs.hidden = made.length < 2;
  panels.replaceChildren(...made.map((tab) => tab.panel));
  if (made.length) open(made[0]);
  else panels.replaceChildren(element("p", {}, "No run takes samples that a page can make. Ask it by a program: see below."));
  return () => current?.question() ?? { why: "" };
}
