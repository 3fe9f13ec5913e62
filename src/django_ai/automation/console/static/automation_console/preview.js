// Asks what saving the form would do, when the button is pressed and after a field has changed. A form with a file is
// sent only when the button is pressed. Without this script the button opens the answer in a new tab. Nothing is saved
// either way.
"use strict";
(() => {
  const WAIT_MS = 400;
  const button = document.querySelector("[data-automation-preview]");
  const answer = document.querySelector("[data-automation-preview-answer]");
  if (!button || !answer || !button.form) return;
  let timer = 0;
  let asked = 0;
  const hasFile = () => [...button.form.elements].some((each) => each.type === "file" && each.files.length > 0);
  const fetched = async () => {
    try {
      const response = await fetch(button.formAction, {
        method: "POST",
        body: new FormData(button.form),
        headers: {"X-Requested-With": "automation-preview"},
        credentials: "same-origin",
      });
      return response.ok && !response.redirected ? await response.text() : null;
    } catch {
      return null;
    }
  };
  const ask = async (isPressed) => {
    const number = ++asked;
    const text = await fetched();
    if (number !== asked) return;
    if (text === null) {
      // What was answered before is not about what the form holds now.
      answer.textContent = isPressed ? button.dataset.failed : "";
      return;
    }
    const page = new DOMParser().parseFromString(text, "text/html");
    answer.replaceChildren(...page.body.childNodes);
  };
  button.addEventListener("click", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    ask(true);
  });
  button.form.addEventListener("change", () => {
    clearTimeout(timer);
    if (hasFile()) {
      asked += 1;
      answer.replaceChildren();
      return;
    }
    timer = setTimeout(ask, WAIT_MS, false);
  });
})();
