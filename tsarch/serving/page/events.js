// What people do on the page.

function showTip(element) {
  const lines = tips.get(element);
  if (!lines || element.classList.contains("off")) return;
  const outer = element.parentElement.closest("mark, u.differs");
  const all = outer && tips.has(outer) ? [...lines, ...tips.get(outer)] : lines;
  $("tip").replaceChildren(...all.map((line) => el("div", {}, line)));
  $("tip").hidden = false;
  element.setAttribute("aria-describedby", "tip");
  const [place, own] = [element.getClientRects()[0], $("tip").getBoundingClientRect()];
  const below = place.bottom + 6 + own.height < innerHeight;
  $("tip").style.left = `${Math.max(4, Math.min(place.left, innerWidth - own.width - 4))}px`;
  $("tip").style.top = `${below ? place.bottom + 6 : Math.max(4, place.top - own.height - 6)}px`;
}

function hideTip() {
  $("tip").hidden = true;
  for (const own of document.querySelectorAll("[aria-describedby=tip]")) own.removeAttribute("aria-describedby");
}

function tipsOn(shows, hides) {
  document.addEventListener(shows, (event) => {
    const own = event.target.closest?.("mark, u.differs");
    hideTip();
    if (own) showTip(own);
  });
  document.addEventListener(hides, hideTip);
}

/** Panels' texts scroll together. */
function scrollTogether(event) {
  const own = event.target;
  if (!own.classList?.contains("text") || (!own.matches(":hover") && !own.contains(document.activeElement))) return;
  const height = own.scrollHeight - own.clientHeight;
  if (height <= 0) return;
  const place = own.scrollTop / height;
  const panels = [...document.querySelectorAll(".panel")];
  const number = [...own.parentElement.querySelectorAll(".text")].indexOf(own);
  for (const panel of panels) {
    const other = panel.querySelectorAll(".text")[number];
    if (other && other !== own) other.scrollTop = place * (other.scrollHeight - other.clientHeight);
  }
}

const THEME = "tsarch-theme";

function isDark() {
  const own = document.documentElement.dataset.theme;
  return own ? own === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  $("theme").setAttribute("aria-pressed", String(isDark()));
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    predict();
  }
  if (event.key !== "Escape") return;
  hideTip();
  state.controller?.abort();
}

function edited() {
  if (state.asked && !state.controller) $("stale").hidden = false;
}

$("run").addEventListener("change", () => chooseRun(state.runs[$("run").selectedIndex]));
$("examples").addEventListener("change", () => {
  if ($("examples").value === "") return;
  showExample(state.run.examples[Number($("examples").value)]);
  edited();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
$("fields").addEventListener("input", edited);
$("cancel").addEventListener("click", () => state.controller?.abort());
$("clear").addEventListener("click", () => {
  state.controller?.abort();
  chooseRun(state.run);
  say("");
  $("fields").querySelector("textarea, input")?.focus();
});
$("as-json").addEventListener("click", switchForm);
$("access-button").addEventListener("click", () => {
  toggleAccess($("access").hidden);
  if (!$("access").hidden) $("token").focus();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("token").value) sessionStorage.setItem(TOKEN, $("token").value);
  else sessionStorage.removeItem(TOKEN);
  $("token").value = "";
  toggleAccess(false);
  alertOf("");
  if (state.run) say("The token is used from now on.");
  else start();
});
$("theme").addEventListener("click", () => {
  const name = isDark() ? "light" : "dark";
  localStorage.setItem(THEME, name);
  setTheme(name);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(""));
document.addEventListener("keydown", onKey);
document.addEventListener("scroll", scrollTogether, true);
tipsOn("mouseover", "mouseout");
tipsOn("focusin", "focusout");
setTheme(localStorage.getItem(THEME));
start();
