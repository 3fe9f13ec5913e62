// Asks what saving the form would do, when the button is pressed and after a field has changed. Without this script the
// button opens the answer in a new tab. Nothing is saved either way.
"use strict";
(() => {
  const WAIT_MS = 400;
  const button = document.querySelector("[data-automation-preview]");
  const answer = document.querySelector("[data-automation-preview-answer]");
  if (!button || !answer || !button.form) return;
  let timer = 0;
  let asked = 0;
  const ask = async () => {
    const number = ++asked;
    const response = await fetch(button.formAction, {
      method: "POST",
      body: new FormData(button.form),
      headers: {"X-Requested-With": "automation-preview"},
      credentials: "same-origin",
    });
    if (!response.ok || response.redirected || number !== asked) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    answer.replaceChildren(...page.body.childNodes);
  };
  button.addEventListener("click", (event) => {
    event.preventDefault();
    ask();
  });
  button.form.addEventListener("change", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, WAIT_MS);
  });
})();
