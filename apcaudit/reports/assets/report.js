"use strict";
(() => {
  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  /* One list of rows with its tools: which rows are shown, and in which order. */
  class List {
    constructor(tools) {
      const target = document.getElementById(tools.dataset.for);
      this.body = target.matches(".rows") ? target : target.querySelector(".rows");
      this.rows = Array.from(this.body.children);
      this.texts = new Map();
      this.cap = Number(tools.dataset.cap);
      this.everything = false;
      this.words = tools.querySelector(".words");
      this.level = tools.querySelector(".level");
      this.count = tools.querySelector(".count");
      this.all = tools.querySelector(".all");
      this.words.addEventListener("input", () => this.apply());
      if (this.level) this.level.addEventListener("change", () => this.apply());
      this.all.addEventListener("click", () => { this.everything = true; this.apply(); this.words.focus(); });
      for (const button of target.querySelectorAll("button.sort")) {
        button.addEventListener("click", () => this.sort(button.closest("th")));
      }
      this.tools = tools;
      /* A few rows are seen at a glance. */
      tools.hidden = this.rows.length < 4;
      this.apply();
    }

    text(row) {
      if (!this.texts.has(row)) this.texts.set(row, row.textContent.toLowerCase());
      return this.texts.get(row);
    }

    matches(row, words, level) {
      return (level === "" || Number(row.dataset.level) <= Number(level)) && words.every((word) => this.text(row).includes(word));
    }

    apply() {
      const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const level = this.level ? this.level.value : "";
      let matching = 0;
      let shown = 0;
      for (const row of this.rows) {
        const fits = this.matches(row, words, level);
        matching += fits;
        const show = fits && (this.everything || shown < this.cap);
        shown += show;
        if (row.hidden === show) row.hidden = !show;
      }
      const of = matching === this.rows.length ? "" : ` (${this.rows.length} in all)`;
      this.count.textContent = `${shown} of ${matching} shown${of}`;
      this.all.hidden = shown === matching;
    }

    sort(header) {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      for (const other of header.parentNode.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = List.keys[header.dataset.kind](header.cellIndex);
      const keyed = this.rows.map((row) => [key(row), row]);
      keyed.sort(([one], [other]) => (typeof one === "number" ? one - other : order.compare(one, other)));
      if (!ascending) keyed.reverse();
      this.rows = keyed.map(([, row]) => row);
      this.body.append(...this.rows);
      this.apply();
    }
  }

  /* What a column is sorted by; an empty number comes before all others. */
  List.keys = {
    text: (index) => (row) => row.cells[index].textContent.trim(),
    number: (index) => (row) => { const value = parseFloat(row.cells[index].textContent); return Number.isNaN(value) ? -Infinity : value; },
    level: () => (row) => Number(row.dataset.level),
  };

  document.body.classList.add("scripted");
  const lists = new Map();
  for (const tools of document.querySelectorAll(".tools")) lists.set(tools.dataset.for, new List(tools));

  /* A finding's name above the matrix shows that finding in the table of all. */
  for (const link of document.querySelectorAll("a[data-filter]")) {
    link.addEventListener("click", () => {
      const list = lists.get("all-findings");
      list.tools.hidden = false;
      list.words.value = link.dataset.filter;
      list.level.value = "";
      list.apply();
      list.words.focus({ preventScroll: true });
    });
  }
})();
