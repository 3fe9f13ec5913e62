// Refreshes a page of the console in place, without a framework and without inline code.
//
// The element with `data-automation-refresh` is read again from the server, and what differs is changed in the document:
// so the focus, the scroll position, open <details> and what is typed stay. A hidden tab asks for nothing, errors make
// the intervals longer, and a button pauses it. Without this module the pages are the same, only still.

const SECONDS = 1000;
const LONGEST_WAIT = 300 * SECONDS;
const BETWEEN_ANNOUNCEMENTS = 20 * SECONDS;
const STORED = "automation-refresh-paused";
const TYPED_INTO = new Set(["INPUT", "TEXTAREA", "SELECT"]);

/** Change `old` into `fresh`: attributes, texts and children. Nodes that are the same in both stay in the document. */
export function morph(old, fresh, changed = () => {}) {
  if (old.nodeType === Node.TEXT_NODE || old.nodeType === Node.COMMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) {
      old.nodeValue = fresh.nodeValue;
      changed(old.parentElement);
    }
    return;
  }
  if (TYPED_INTO.has(old.nodeName)) return;
  for (const { name } of [...old.attributes]) {
    const isOpen = name === "open" && old.nodeName === "DETAILS"; // the reader decides
    if (!isOpen && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (name === "open" && old.nodeName === "DETAILS") continue;
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, fresh, changed);
}

function morphChildren(old, fresh, changed) {
  const named = new Map([...old.children].filter((node) => keyOf(node)).map((node) => [keyOf(node), node]));
  const kept = new Set([...fresh.children].map(keyOf));
  let at = old.firstChild;
  const dropGone = () => {
    while (at && keyOf(at) && !kept.has(keyOf(at))) {
      const next = at.nextSibling;
      at.remove(); // first, so that what follows is not moved: that would take the focus from it
      at = next;
    }
  };
  for (const wanted of [...fresh.childNodes]) {
    const key = keyOf(wanted);
    dropGone();
    let match = key ? named.get(key) : null;
    named.delete(key); // two with one key are two nodes
    if (!match && at && isSame(at, wanted) && !keyOf(at)) match = at;
    if (match) {
      if (match === at) at = at.nextSibling;
      else old.insertBefore(match, at);
      morph(match, wanted, changed);
    } else {
      const made = document.importNode(wanted, true);
      old.insertBefore(made, at);
      if (made.nodeType === Node.ELEMENT_NODE) changed(made);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset?.key || "" : "");
const isSame = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && !keyOf(other);

/** What a reader would notice: the text, without the times that differ each time. */
export function noticed(root) {
  const copy = root.cloneNode(true);
  for (const clock of copy.querySelectorAll("[data-clock], time")) clock.remove();
  return copy.textContent.replace(/\s+/g, " ").trim();
}

export class Refresher {
  constructor(root, { fetch = window.fetch.bind(window), now = () => Date.now() } = {}) {
    this.root = root;
    this.fetch = fetch;
    this.now = now;
    this.interval = Number(root.dataset.automationRefresh) * SECONDS;
    this.failures = 0;
    this.timer = null;
    this.announcedAt = -Infinity;
    this.readAt = now();
    this.isOver = false;
    this.isReading = false;
    this.isPaused = stored() === "yes";
  }

  start() {
    this.bar = document.createElement("p");
    this.bar.className = "automation-refresh";
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.className = "button";
    this.button.addEventListener("click", () => this.pause(!this.isPaused));
    this.state = document.createElement("span");
    this.live = document.createElement("span"); // apart from the state, which is no news
    this.live.setAttribute("aria-live", "polite");
    this.live.className = "automation-refresh-news";
    this.bar.append(this.button, " ", this.state, " ", this.live);
    this.root.before(this.bar);
    document.addEventListener("visibilitychange", () => this.look());
    this.show();
    this.plan();
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    store(isPaused ? "yes" : "");
    this.show();
    if (isPaused) clearTimeout(this.timer);
    else this.refresh();
  }

  show() {
    const { pause, resume, every, paused, stopped } = this.root.dataset;
    this.button.textContent = this.isPaused ? resume : pause;
    this.button.hidden = this.isOver;
    this.state.textContent = this.isOver ? stopped : this.isPaused ? paused : every;
  }

  /** Continue when the tab is seen again; what has become old is read at once. */
  look() {
    clearTimeout(this.timer);
    if (document.hidden || this.isPaused || this.isOver) return;
    if (this.now() - this.readAt >= this.interval) this.refresh();
    else this.plan();
  }

  plan() {
    clearTimeout(this.timer);
    if (this.isPaused || this.isOver || document.hidden || !this.interval) return;
    const wait = Math.min(this.interval * 2 ** this.failures, Math.max(LONGEST_WAIT, this.interval));
    this.timer = setTimeout(() => this.refresh(), wait);
  }

  async refresh() {
    if (this.isReading || this.isPaused || this.isOver || document.hidden) return;
    if (this.isTyping()) return this.plan();
    this.isReading = true;
    try {
      const answer = await this.fetch(window.location.href, {
        headers: { Accept: "text/html" },
        credentials: "same-origin",
        cache: "no-store",
      });
      if (answer.redirected || answer.status === 403 || answer.status === 404) return this.end();
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById(this.root.id);
      if (!fresh) return this.end();
      if (!this.isPaused && !this.isTyping()) this.apply(fresh);
      this.failures = 0;
      this.readAt = this.now();
    } catch {
      this.failures += 1;
      if (this.failures === 1) this.say(this.root.dataset.failed);
    } finally {
      this.isReading = false;
    }
    this.plan();
  }

  apply(fresh) {
    const before = noticed(this.root);
    const focused = document.activeElement;
    const mayMove = window.matchMedia("(prefers-reduced-motion: no-preference)").matches;
    const touched = new Set();
    this.interval = Number(fresh.dataset.automationRefresh) * SECONDS;
    morph(this.root, fresh, (element) => element && touched.add(element));
    if (focused && focused !== document.activeElement && !focused.isConnected) this.keepFocus(focused);
    this.show();
    if (noticed(this.root) === before) {
      if (this.failures) this.live.textContent = "";
      return;
    }
    if (this.now() - this.announcedAt >= BETWEEN_ANNOUNCEMENTS) {
      this.announcedAt = this.now();
      this.say(this.root.dataset.changed);
    }
    if (mayMove) for (const element of touched) this.mark(element);
  }

  /** The focused element is gone: the reader continues at the place where it was, and not at the top of the page. */
  keepFocus(gone) {
    const same = gone.id && document.getElementById(gone.id);
    const place = same || this.root;
    if (!same) this.root.setAttribute("tabindex", "-1");
    place.focus({ preventScroll: true });
  }

  mark(element) {
    if (element.closest("[data-clock], time")) return;
    element.classList.remove("automation-changed");
    requestAnimationFrame(() => element.classList.add("automation-changed"));
    element.addEventListener("animationend", () => element.classList.remove("automation-changed"), { once: true });
  }

  /** Let screen readers say `text` when they have said what they are saying. */
  say(text) {
    this.live.textContent = ""; // the same text twice is said twice
    requestAnimationFrame(() => (this.live.textContent = text));
  }

  /** Somebody types in a form of the page, or selects text in it: it waits. */
  isTyping() {
    const forms = [...this.root.querySelectorAll("textarea, input:not([type=hidden])")];
    const selection = window.getSelection();
    const isSelecting = selection && !selection.isCollapsed && this.root.contains(selection.anchorNode);
    return isSelecting || forms.some((field) => field === document.activeElement || field.value !== field.defaultValue);
  }

  end() {
    this.isOver = true;
    this.show();
    this.say(this.root.dataset.stopped);
  }
}

function stored() {
  try {
    return window.sessionStorage.getItem(STORED);
  } catch {
    return null; // the browser forbids it
  }
}

function store(value) {
  try {
    window.sessionStorage.setItem(STORED, value);
  } catch {
    // it lasts for this page only
  }
}

if (typeof document !== "undefined") {
  for (const root of document.querySelectorAll("[data-automation-refresh]")) new Refresher(root).start();
}
