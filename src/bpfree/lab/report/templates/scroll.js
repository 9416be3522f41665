"use strict";
// The line that says that a table can be scrolled is only shown where this is so.
(() => {
  const hints = [...document.querySelectorAll(".hint")].map((hint) => ({ hint, box: hint.nextElementSibling }));
  const show = () => hints.forEach(({ hint, box }) => (hint.hidden = box.scrollWidth <= box.clientWidth + 1));
  const observer = new ResizeObserver(show);
  hints.forEach(({ box }) => observer.observe(box));
  show();
})();
