// Search without a server. The index is a script too, because a page opened from a folder may not fetch files;
// it is loaded when the box is first used. Keys: "/" focuses, arrows choose, Enter opens, Escape closes.
const siteRoot = new URL(".", document.currentScript.src).href;
let loading = null;

// One entry for a page and one for each of its sections: [page title, address, name, first words]
function loadIndex() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = siteRoot + "search-index.js";
    script.onload = () => done(SEARCH_INDEX.flatMap(([url, title, subtitle, sections]) => [
      { title, url, name: title, text: subtitle, page: true },
      ...sections.map(([anchor, name, text]) => ({ title, url: anchor ? `${url}#${anchor}` : url, name: name || title, text, page: false })),
    ]));
    script.onerror = failed;
    document.head.append(script);
  });
  return loading;
}

// Every word must occur; a name counts more than what stands below it, a whole name most, and the middle of a word
// ("n-mnist" in "Fashion-MNIST") next to nothing.
function begins(text, word) {
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
    if (!at || !/[\p{L}\p{N}]/u.test(text[at - 1])) return true;
  }
  return false;
}

function score(entry, words) {
  const name = entry.name.toLowerCase(), text = entry.text.toLowerCase(), title = entry.title.toLowerCase();
  let total = name === words.join(" ") ? 100 : 0, own = false;
  for (const word of words) {
    const points = name === word ? 60 : name.startsWith(word) ? 30 : begins(name, word) ? 20 : begins(text, word) ? 5 : name.includes(word) ? 2 : text.includes(word) ? 1 : 0;
    if (!points && !title.includes(word)) return 0;
    own ||= points > 0;
    total += points;
  }
  return own ? total + (entry.page ? 3 : 0) : 0;
}

const wordsOf = (query) => query.toLowerCase().split(/\s+/).filter(Boolean);

function search(entries, query) {
  const words = wordsOf(query), best = new Map();
  for (const entry of words.length ? entries : []) {
    const found = { entry, points: score(entry, words) };
    if (found.points > (best.get(entry.url)?.points ?? 0)) best.set(entry.url, found);
  }
  return [...best.values()].sort((a, b) => b.points - a.points).slice(0, 12).map((found) => found.entry);
}

// The words from the place that was found on, unless the beginning shows it.
function extract(text, words) {
  const places = words.map((word) => text.toLowerCase().indexOf(word)).filter((at) => at >= 0), at = Math.min(...places);
  return places.length && at > 50 ? "… " + text.slice(text.lastIndexOf(" ", at - 20) + 1) : text;
}

function option({ url, name, title, text }, number, words) {
  const link = Object.assign(document.createElement("a"), { href: siteRoot + url, id: `found-${number}`, tabIndex: -1 });
  link.setAttribute("role", "option");
  for (const [tag, content] of [["b", name], ["i", name === title ? "" : title], ["span", extract(text, words)]]) {
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
    const found = await loadIndex().then((entries) => search(entries, query), () => null);
    if (query !== box.value.trim()) return; // the reader has typed on
    list.replaceChildren(...(found ?? []).map((entry, number) => option(entry, number, wordsOf(query))));
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
