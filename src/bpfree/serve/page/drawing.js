// An area to draw in, by mouse, pen, finger or keyboard. It is a grid of cells with values from 0 (paper) to 1 (ink).

import { colour, element } from "./common.js";

const SIDE = 28; // cells
const RADIUS = 1.1; // of the pen, in cells
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const HELP = "Draw with a mouse, a pen or a finger.";
const KEYS = "With the keyboard: arrow keys move by a cell, space draws, Shift with an arrow key draws a line, Delete erases.";

export class Drawing {
  /** Make an area; `changed` is called after each change. */
  constructor(changed) {
    this.changed = changed;
    this.cells = new Float32Array(SIDE * SIDE);
    this.past = [];
    this.cursor = [Math.floor(SIDE / 2), Math.floor(SIDE / 2)];
    this.erases = false;
    this.byKey = false;
    this.last = null;
    this.canvas = element("canvas", {
      class: "board",
      tabindex: "0",
      role: "application",
      "aria-label": `Drawing area, ${SIDE} by ${SIDE} cells`,
      "aria-describedby": "drawing-help",
      onpointerdown: (event) => this.begin(event),
      onpointermove: (event) => this.move(event),
      onpointerup: () => this.end(),
      onpointercancel: () => this.end(),
      onkeydown: (event) => this.press(event),
      onfocus: () => this.point(this.canvas.matches(":focus-visible")),
      onblur: () => this.show(),
    });
    this.place = element("p", { class: "unseen", role: "status" });
    this.eraser = element("button", { type: "button", "aria-pressed": "false", onclick: () => this.toggleEraser() }, "Eraser");
    this.undoer = element("button", { type: "button", disabled: true, onclick: () => this.undo() }, "Undo");
    this.clearer = element("button", { type: "button", disabled: true, onclick: () => this.clear() }, "Clear");
    this.hint = element("p", { class: "board-hint", "aria-hidden": "true" }, "Draw here");
    this.root = element(
      "div",
      { class: "drawing" },
      element("div", { class: "board-frame" }, this.canvas, this.hint),
      element("div", { class: "buttons" }, this.clearer, this.undoer, this.eraser),
      element("p", { class: "note", id: "drawing-help" }, HELP, element("span", { class: "keys" }, " ", KEYS)),
      this.place,
    );
    new ResizeObserver(() => this.show()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
  }

  /** Return the cells as rows, or null if nothing is drawn. */
  rows() {
    if (!this.cells.some((value) => value > 0)) return null;
    return Array.from({ length: SIDE }, (_, row) =>
      Array.from(this.cells.subarray(row * SIDE, (row + 1) * SIDE), (value) => Math.round(100 * value) / 100),
    );
  }

  /** Draw or erase along a line between two places, in cells. */
  stroke([top, left], [bottom, right], erases = this.erases) {
    const radius = erases ? RADIUS + 0.9 : RADIUS;
    const [height, width] = [bottom - top, right - left];
    const length = height * height + width * width;
    for (let row = 0; row < SIDE; row += 1) {
      for (let column = 0; column < SIDE; column += 1) {
        const [y, x] = [row + 0.5 - top, column + 0.5 - left];
        const along = length ? Math.min(1, Math.max(0, (y * height + x * width) / length)) : 0;
        const distance = Math.hypot(y - along * height, x - along * width);
        const ink = Math.min(1, Math.max(0, radius + 0.5 - distance));
        const at = row * SIDE + column;
        this.cells[at] = erases ? Math.min(this.cells[at], 1 - ink) : Math.max(this.cells[at], ink);
      }
    }
    this.update();
  }

  /** Remember the drawing before a change. */
  remember() {
    this.past.push(this.cells.slice());
    if (this.past.length > 100) this.past.shift();
  }

  begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.byKey = false;
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = this.placeOf(event);
    this.stroke(this.last, this.last);
  }

  move(event) {
    if (this.last === null) return;
    // A fast pointer makes several events between two frames of the browser.
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const place = this.placeOf(each);
      this.stroke(this.last, place);
      this.last = place;
    }
  }

  end() {
    this.last = null;
  }

  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientY - box.top) / box.height) * SIDE, ((event.clientX - box.left) / box.width) * SIDE];
  }

  press(event) {
    const middle = () => this.cursor.map((value) => value + 0.5);
    if (event.key in MOVES) {
      const before = middle();
      this.cursor = this.cursor.map((value, axis) => Math.min(SIDE - 1, Math.max(0, value + MOVES[event.key][axis])));
      if (event.shiftKey) {
        this.remember();
        this.stroke(before, middle());
      }
    } else if (event.key === " ") {
      this.remember();
      this.stroke(middle(), middle());
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.remember();
      this.stroke(middle(), middle(), true);
    } else {
      return;
    }
    event.preventDefault();
    const ink = this.cells[this.cursor[0] * SIDE + this.cursor[1]] > 0.5 ? "ink" : "paper";
    this.place.textContent = `row ${this.cursor[0] + 1}, column ${this.cursor[1] + 1}, ${ink}`;
    this.point(true);
  }

  /** Show or hide the cursor, which only keys need. */
  point(byKey) {
    this.byKey = byKey;
    this.show();
  }

  toggleEraser() {
    this.erases = !this.erases;
    this.eraser.setAttribute("aria-pressed", String(this.erases));
  }

  undo() {
    this.cells = this.past.pop() ?? this.cells;
    this.update();
  }

  clear() {
    this.remember();
    this.cells = new Float32Array(SIDE * SIDE);
    this.update();
  }

  update() {
    const isEmpty = this.rows() === null;
    this.clearer.disabled = isEmpty;
    this.undoer.disabled = this.past.length === 0;
    this.hint.hidden = !isEmpty;
    this.show();
    this.changed();
  }

  /** Paint the cells, and the cursor while keys are used. */
  show() {
    const side = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (!side) return;
    this.canvas.width = side;
    this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    const cell = side / SIDE;
    context.fillStyle = colour("--board");
    context.fillRect(0, 0, side, side);
    context.fillStyle = colour("--board-line");
    for (let line = 1; line < SIDE; line += 1) {
      context.fillRect(Math.round(line * cell), 0, 1, side);
      context.fillRect(0, Math.round(line * cell), side, 1);
    }
    context.fillStyle = colour("--board-ink");
    this.cells.forEach((value, at) => {
      if (value <= 0) return;
      const [top, left] = [Math.floor(at / SIDE), at % SIDE].map((place) => Math.round(place * cell));
      context.globalAlpha = value;
      context.fillRect(left, top, Math.ceil(cell), Math.ceil(cell));
    });
    context.globalAlpha = 1;
    if (this.byKey && document.activeElement === this.canvas) {
      context.strokeStyle = colour("--accent");
      context.lineWidth = Math.max(2, cell / 5);
      context.strokeRect(this.cursor[1] * cell, this.cursor[0] * cell, cell, cell);
    }
  }
}
