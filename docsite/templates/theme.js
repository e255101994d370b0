// Light, dark, or what the reader's system says. Loaded before the page is drawn, so that no page flashes in the wrong colours. Paper is light.
const THEMES = { auto: "screen and (prefers-color-scheme: dark)", light: "not all", dark: "screen" };

function storedTheme() {
  try { return localStorage.theme in THEMES ? localStorage.theme : "auto"; } catch { return "auto"; } // a browser may forbid storage
}

function applyTheme(theme) {
  document.getElementById("dark").media = THEMES[theme];
  const button = document.querySelector(".theme");
  if (!button) return;
  button.hidden = false;
  button.dataset.theme = button.querySelector("span").textContent = theme;
  button.setAttribute("aria-label", `Colours: ${theme}. Change them`);
}

applyTheme(storedTheme());
document.addEventListener("DOMContentLoaded", () => {
  applyTheme(storedTheme());
  const here = document.querySelector(".sidebar [aria-current]"), sidebar = here.closest(".sidebar");
  if (here.offsetTop + here.offsetHeight > sidebar.clientHeight) sidebar.scrollTop = here.offsetTop - sidebar.clientHeight / 3; // the list shows where the reader is
  document.querySelector(".theme").addEventListener("click", () => {
    const names = Object.keys(THEMES), next = names[(names.indexOf(storedTheme()) + 1) % names.length];
    try { localStorage.theme = next; } catch { /* for this page only */ }
    applyTheme(next);
  });
});
