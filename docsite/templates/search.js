// Search without a server. The index is a script too, because a page opened from a folder may not fetch files;
// it is loaded when the box is first used. Keys: "/" focuses, arrows choose, Enter opens, Escape closes.
const siteRoot = new URL(".", document.currentScript.src).href;
let loading = null;

function loadScript(name) {
  return new Promise((done, failed) => {
    const script = Object.assign(document.createElement("script"), { src: siteRoot + name, onload: done, onerror: failed });
    document.head.append(script);
  });
}

function loadIndex() {
  loading ??= Promise.all(["minisearch.js", "find.js", "search-index.js"].map(loadScript)).then(async () => {
    const site = new SiteSearch([], SEARCH_SYNONYMS);
    for (const [n, page] of SEARCH_PAGES.entries()) {
      site.add(page);
      if (n % 5 === 0) await new Promise((done) => setTimeout(done)); // the reader goes on typing meanwhile
    }
    return site;
  });
  return loading;
}

// The words around the longest word that was found, unless the beginning shows it.
function extract(text, terms) {
  const plain = text.toLowerCase(), shown = terms.filter((term) => plain.includes(term)).sort((a, b) => b.length - a.length);
  const at = shown.length ? plain.indexOf(shown[0]) : 0;
  const from = at > 50 ? text.lastIndexOf(" ", at - 20) + 1 : 0;
  return (from ? "… " : "") + text.slice(from, from + 300);
}

function option({ url, name, title, text, terms }, number) {
  const link = Object.assign(document.createElement("a"), { href: siteRoot + url, id: `found-${number}`, tabIndex: -1 });
  link.setAttribute("role", "option");
  for (const [tag, content] of [["b", name], ["i", name === title ? "" : title], ["span", extract(text, terms)]]) {
    if (content) link.append(Object.assign(document.createElement(tag), { textContent: content }), " ");
  }
  return link;
}

document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector(".search"), box = form.querySelector("input");
  const list = document.getElementById("found"), status = form.querySelector("[role=status]");
  let chosen = -1;
  form.hidden = false;

  function choose(number) {
    chosen = number;
    [...list.children].forEach((link, n) => link.setAttribute("aria-selected", n === chosen));
    const link = list.children[chosen];
    if (link) { box.setAttribute("aria-activedescendant", link.id); link.scrollIntoView({ block: "nearest" }); }
    else box.removeAttribute("aria-activedescendant");
  }

  function close() {
    list.hidden = status.hidden = true;
    box.setAttribute("aria-expanded", "false");
    choose(-1);
  }

  async function show() {
    const query = box.value.trim();
    if (!query) return close();
    const found = await loadIndex().then((site) => site.find(query), () => null);
    if (query !== box.value.trim()) return; // the reader has typed on
    list.replaceChildren(...(found ?? []).map((entry, number) => option(entry, number)));
    list.hidden = !found?.length;
    status.textContent = !found ? "The index could not be loaded." : found.length ? `${found.length} places` : `Nothing says “${query}”.`;
    status.hidden = Boolean(found?.length);
    box.setAttribute("aria-expanded", String(!list.hidden));
    choose(list.hidden ? -1 : 0);
  }

  box.addEventListener("focus", loadIndex);
  box.addEventListener("input", show);
  form.addEventListener("focusout", (event) => { if (!form.contains(event.relatedTarget)) close(); });
  form.addEventListener("submit", (event) => { event.preventDefault(); list.children[chosen]?.click(); });
  list.addEventListener("mousedown", (event) => event.preventDefault()); // keep the focus in the box, so that the list stays for the click
  list.addEventListener("click", close);
  box.addEventListener("keydown", (event) => {
    const count = list.hidden ? 0 : list.children.length, step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && count) { event.preventDefault(); choose((chosen + step + count) % count); }
    if (event.key === "Escape") { box.value = ""; close(); box.blur(); }
  });
  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); box.focus(); }
  });

  const asked = new URLSearchParams(location.search).get("q"); // index.html?q=leak
  if (asked) { box.value = asked; box.focus(); show(); }
});
