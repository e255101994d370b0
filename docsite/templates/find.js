// The search itself, over the words of all pages, without a page to show it on; MiniSearch scores and matches.
// What is added here: words of names and their parts, plain stems, synonyms, words run together, and the place on a page.
const STOP_WORDS = new Set(("a about after all also am an and any are as at be because been before being between both but by can could did do does " +
  "doing each else every for from get had has have having he her here him his how i if in into is it its just let like may me might mine more " +
  "most must my need no nor not now of off on once only or other our out over own please same shall she should so some such than that the their " +
  "them then there these they this those through to too under until up us use using very want was we were what when where whether which while " +
  "who whom whose why will with would you your").split(" "));
const WEIGHTS = { word: 1, stem: 0.8, parts: 0.6, begun: 0.5, synonym: 0.45, longer: 0.2 };
const PAGE_FIELDS = { title: 6, headings: 3, names: 3, trail: 1, subtitle: 2, text: 1, code: 0.3 };
const KINDS = { Overview: 1.25, Tutorials: 1.25, Reference: 0.8, "Gallery of experiments": 0.8 }; // what explains comes before what lists
const kindOf = (trail) => trail.split(" / ").map((name) => KINDS[name]).findLast(Boolean) ?? 1;
const BEGINNING = 0.6;
const LONGEST = 16; // words of a query that count
const KEPT = 300; // words whose places are remembered while a reader types
const SECTION_FIELDS = { heading: 4, text: 1, code: 0.3 };

// "N-MNIST" is found as n, mnist and nmnist, "copy_weights" as copy, weights and copyweights; numbers with a point are left out
function wordsOf(text) {
  const found = [];
  const plain = text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").replace(/['’]s\b/g, "").toLowerCase().replace(/(?<=\w{4})iz(?=[aei])/g, "is");
  for (const piece of plain.split(/[^\p{L}\p{N}_.-]+/u)) {
    const parts = piece.split(/[_.-]+/).filter(Boolean);
    if (/^[\d.-]+$/.test(piece) && parts.length > 1) continue;
    found.push(parts);
  }
  return found.filter((parts) => parts.length);
}

const asked = (text) => wordsOf(text).map((parts) => parts.join(""));

// one stem for prune, pruned, pruning, prunes; short words and those with digits stay as they are
function stemOf(word) {
  if (word.length < 5 || /\d/.test(word)) return word.length > 3 && /[^s]s$/.test(word) ? word.slice(0, -1) : word;
  const stem = word.replace(/ies$/, "y").replace(/(?:ings|ing|ed|es|e|s)$/, "");
  return stem.length > 2 ? stem : word;
}

function indexTerms(text) {
  const terms = [];
  for (const parts of wordsOf(text)) {
    for (const word of parts.length > 1 ? [...parts, parts.join("")] : parts) {
      terms.push(word);
      const stem = stemOf(word);
      if (stem !== word) terms.push(stem + "~"); // the mark keeps stems and words apart
    }
  }
  return terms;
}

// letters that differ between two words, two exchanged neighbours counted once
function distance(a, b) {
  const rows = [Array.from({ length: b.length + 1 }, (_, n) => n)];
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      row[j] = Math.min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const marked = (word) => stemOf(word) + "~";
const content = (words) => words.filter((word) => !STOP_WORDS.has(word));
const isFindable = (phrase) => content(phrase).length > Math.min(1, phrase.length - 1); // "no gpu" without "no" would find GPUs
const exactly = { tokenize: (text) => [text], processTerm: (text) => text };

class SiteSearch {
  constructor(pages, synonyms) {
    const options = (fields) => ({ fields: Object.keys(fields), tokenize: indexTerms, processTerm: (term) => (STOP_WORDS.has(term) ? null : term) });
    this.pages = new Map();
    const counted = (term) => { this.found.add(term); return STOP_WORDS.has(term) ? null : term; };
    this.wholes = new MiniSearch({ ...options(PAGE_FIELDS), processTerm: counted });
    this.places = new MiniSearch(options(SECTION_FIELDS));
    this.counts = new Map(); // of pages that have a term
    this.kept = new Map(); // of words that were looked up, where they occur: a query is asked again with each letter
    for (const page of pages) this.add(page);
    this.groups = synonyms.map((group) => group.map(asked));
    this.listed = new Set(this.groups.flat(2)); // words that are no typing errors, on whatever page they are
  }

  add([url, title, subtitle, names, trail, sections]) {
    const called = new Set(names.split(" ").map((name) => asked(name).join("")));
    this.pages.set(url, { url, title, subtitle, trail, sections, called, whole: asked(title).join("") });
    this.kept.clear();
    const all = (n) => sections.map((section) => section[n]).join("\n");
    this.found = new Set();
    this.wholes.add({ id: url, title, subtitle, names, trail, headings: all(1), text: all(2), code: all(3) });
    for (const term of this.found) this.counts.set(term, (this.counts.get(term) ?? 0) + 1);
    sections.forEach(([anchor, heading, text, code], at) => {
      this.places.add({ id: `${url} ${at}`, heading: anchor ? heading : title, text, code });
    });
  }

  // The words of a query, and what may stand for one or several of them: words that must all occur, with a weight.
  // Words such as "how" count only as part of a phrase that has synonyms.
  wanted(query) {
    const words = wordsOf(this.plain(query)).slice(0, LONGEST).map((parts) => ({ parts, whole: this.mended(parts.join("")) }));
    const alike = this.alike(words.map(({ whole }) => whole)), phrased = new Set(alike.flatMap(({ at }) => at));
    const told = words.map(({ whole }, n) => !STOP_WORDS.has(whole) || phrased.has(n)), empty = !told.includes(true);
    const options = words.flatMap(({ parts, whole }, n) => {
      if (STOP_WORDS.has(whole) && !empty) return [];
      const own = { at: [n], words: [whole], weight: WEIGHTS.word, begun: n === words.length - 1 || !this.counts.has(whole) };
      const apart = parts.length > 1 ? parts : this.apart(whole);
      return apart.length ? [own, { at: [n], words: apart, weight: WEIGHTS.parts }] : [own];
    });
    const weights = words.map(({ whole }, n) => (told[n] || empty ? this.rarity([whole, stemOf(whole), marked(whole)]) : 0));
    return { weights, options: [...options, ...alike] };
  }

  // a name in camel case that no page has is asked as its words: MultiStepLIFNode as multi, step, LIF, node
  plain(query) {
    const known = (word) => this.counts.has(asked(word).join(""));
    return query.replace(/[A-Za-z]+/g, (word) => (known(word) ? word : word.replace(/([a-z])(?=[A-Z])|([A-Z])(?=[A-Z][a-z])/g, "$1$2 ")));
  }

  // a word that no page has, and with which none begins, is a typing error for the nearest one that pages have
  mended(word) {
    if (this.counts.has(word) || this.listed.has(word) || STOP_WORDS.has(word) || word.length < 5 || word.length > 40 || this.apart(word).length) return word;
    if (this.wholes.search(word, { ...exactly, prefix: true }).length) return word;
    const near = this.wholes.search(word, { ...exactly, fuzzy: 0.25, maxFuzzy: 2 }).flatMap((one) => one.terms);
    const ranked = [...new Set(near)].filter((term) => !term.endsWith("~")).map((term) => [distance(word, term), -this.counts.get(term), term]);
    return ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1])[0]?.[2] ?? word;
  }

  // two known words that were typed as one: "brainscore"
  apart(word) {
    if (this.counts.has(word) || word.length < 6) return [];
    for (let at = word.length - 3; at > 2; at -= 1) {
      const parts = [word.slice(0, at), word.slice(at)];
      if (parts.every((part) => this.counts.has(part))) return parts;
    }
    return [];
  }

  // The other phrases of each group of synonyms of which one stands in the query; the longest phrase at a place counts.
  alike(words) {
    const stems = words.map(stemOf), found = [];
    for (const group of this.groups) {
      for (const phrase of group) {
        const at = stems.findIndex((_, n) => phrase.every((word, m) => stems[n + m] === stemOf(word)));
        if (at >= 0) found.push({ group, at, length: phrase.length });
      }
    }
    const inside = (one, other) => other.length > one.length && other.at <= one.at && one.at + one.length <= other.at + other.length;
    return found.filter((one) => !found.some((other) => inside(one, other))).flatMap(({ group, at, length }) => {
      const places = Array.from({ length }, (_, n) => at + n);
      return group.filter(isFindable).map((phrase) => ({ at: places, words: content(phrase), weight: WEIGHTS.synonym }));
    });
  }

  // A word of the query counts by the best of what may stand for it, so that many synonyms are no more than one;
  // what has all words of the query counts most, and a rare word more than a common one.
  score(index, boost, { weights, options }) {
    const found = new Map();
    for (const option of options) {
      const each = option.words.map((word) => this.looked(index, boost, word, option.begun ?? false));
      for (const id of each[0].keys()) {
        if (!each.every((matches) => matches.has(id))) continue;
        const all = each.map((matches) => matches.get(id));
        const one = found.get(id) ?? { id, points: weights.map(() => 0), terms: [] };
        found.set(id, one);
        const points = option.weight * Math.min(...all.map((match) => match.points));
        for (const n of option.at) one.points[n] = Math.max(one.points[n], points);
        for (const { terms } of all) one.terms.push(...terms);
      }
    }
    const whole = sum(weights);
    for (const one of found.values()) {
      const covered = sum(weights.filter((_, n) => one.points[n])) / whole;
      one.score = covered ** 2 * sum(one.points);
    }
    return [...found.values()].sort((a, b) => b.score - a.score);
  }

  looked(index, boost, word, begun) {
    const name = `${index === this.wholes} ${begun} ${word}`;
    if (!this.kept.has(name)) {
      if (this.kept.size >= KEPT) this.kept.delete(this.kept.keys().next().value);
      this.kept.set(name, this.matches(index, boost, word, begun));
    }
    return this.kept.get(name);
  }

  // Where a word or its stem occurs. What is typed last may be the beginning of a word, and so may a word that no page has.
  matches(index, boost, word, begun) {
    const weights = { fuzzy: 1, prefix: this.counts.has(word) ? WEIGHTS.longer : WEIGHTS.begun };
    const found = new Map();
    for (const term of new Set([word, stemOf(word), marked(word)])) {
      const prefix = begun && term === word && word.length > 2;
      for (const { id, score, terms } of index.search(term, { ...exactly, prefix, weights, boost })) {
        const points = (term === word ? 1 : WEIGHTS.stem) * score * this.rarity(terms), before = found.get(id);
        if (!(before?.points > points)) found.set(id, { points, terms });
      }
    }
    return found;
  }

  // a word that most pages have says little, in a title too
  rarity(terms) {
    return Math.log(1 + this.pages.size / Math.max(1, ...terms.map((term) => this.counts.get(term) ?? 0)));
  }

  // The pages that answer, best first, each with the place on it that answers best. A page counts by all of its words
  // and by those of its best place, so that one passage with all of the words is more than the same words far apart.
  find(query, most = 12) {
    const wanted = this.wanted(query), whole = asked(query).join("");
    if (!whole) return [];
    const found = this.score(this.wholes, PAGE_FIELDS, wanted), places = new Map();
    for (const place of this.score(this.places, SECTION_FIELDS, wanted)) {
      const [url, at] = place.id.split(" "), best = places.get(url) ?? place;
      places.set(url, at === "0" && place.score > BEGINNING * best.score ? place : best); // rather the page than a part of it
    }
    const ids = new Set(found.map((one) => one.id));
    for (const page of this.pages.values()) {
      if (!ids.has(page.url) && page.called.has(whole)) found.push({ id: page.url, score: 0, terms: [whole] });
    }
    for (const one of found) {
      const page = this.pages.get(one.id);
      one.first = page.whole === whole ? 2 : Number(page.called.has(whole)); // what is called exactly so
      one.score = (one.score + (places.get(one.id)?.score ?? 0)) * kindOf(page.trail);
    }
    const best = found.sort((a, b) => b.first - a.first || b.score - a.score).slice(0, most);
    return best.map((one) => {
      const page = this.pages.get(one.id), at = page.sections.findIndex(([, heading]) => heading === query.trim());
      const literal = { id: `${one.id} ${at}`, terms: one.terms }; // sharpened_relu, not SharpenedReLU
      return this.entry(page, at > 0 ? literal : places.get(one.id), one);
    });
  }

  entry({ url, title, subtitle, sections }, place, { score, terms }) {
    const matched = (place?.terms ?? terms).map((term) => term.replace("~", ""));
    const [anchor, heading, text] = sections[place?.id.split(" ")[1] ?? 0] ?? ["", "", ""];
    return { url: anchor ? `${url}#${anchor}` : url, name: anchor ? heading : title, title, text: anchor ? text : `${subtitle}. ${text}`, score, terms: matched };
  }
}
