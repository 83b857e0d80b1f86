"use strict";
(() => {
  const tools = document.querySelector(".tools");
  const buttons = [...tools.querySelectorAll("button")];
  const check = tools.querySelector("select");
  const words = tools.querySelector("input");
  let verdict = "all";

  const apply = () => {
    const wanted = words.value.trim().toLowerCase();
    for (const section of document.querySelectorAll("section[data-filtered]")) {
      let shown = 0;
      for (const item of section.querySelectorAll("[data-verdict]")) {
        const fits =
          (verdict === "all" || item.dataset.verdict === verdict) &&
          (check.value === "" || item.dataset.checks.split(" ").includes(check.value)) &&
          (wanted === "" || item.textContent.toLowerCase().includes(wanted));
        item.hidden = !fits;
        shown += fits;
      }
      section.querySelector(".none").hidden = shown > 0;
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      verdict = button.value;
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
      apply();
    });
  }
  check.addEventListener("change", apply);
  words.addEventListener("input", apply);
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details")) one.open = true;
  });
  tools.hidden = false;
})();
