// Search, the switch between light and dark, and the folded menu of a phone. No other host is asked for anything.
const root = document.currentScript.dataset.root, byId = id => document.getElementById(id);
const theme = byId("theme"), search = byId("search"), found = byId("found");

const dark = () => (document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
function paint(scheme) {
  if (scheme) document.documentElement.style.colorScheme = scheme;
  theme.textContent = dark() ? "Light" : "Dark";
}
paint(localStorage.getItem("scheme"));
theme.addEventListener("click", () => { localStorage.setItem("scheme", dark() ? "light" : "dark"); paint(localStorage.getItem("scheme")); });

if (matchMedia("(max-width: 70rem)").matches) byId("menu").open = false;

// search.js sets `sections`: one entry for each heading of the site, with the text below it. It is loaded at first use.
let loading;
const load = () => loading ??= new Promise(done => {
  const script = document.createElement("script");
  script.src = root + "search.js";
  script.onload = done;
  document.head.append(script);
});
function score(section, words) {
  const heading = section.heading.toLowerCase(), all = [section.page, section.heading, section.text].join(" ").toLowerCase();
  if (!words.every(w => all.includes(w))) return 0;
  const whole = heading.split(/\W+/);
  return 1 + words.filter(w => heading.includes(w)).length + words.filter(w => whole.includes(w)).length;
}
function row(section, words) {
  const link = document.createElement("a"), line = document.createElement("span");
  link.href = root + section.href;
  link.textContent = section.heading === section.page ? section.page : `${section.page}: ${section.heading}`;
  const at = Math.max(0, section.text.toLowerCase().indexOf(words[0]) - 40);
  line.textContent = section.text.slice(at, at + 120);
  link.append(line);
  return link;
}
async function show() {
  if (search.value.trim()) await load();
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const scored = words.length ? sections.map(s => [score(s, words), s]).filter(([n]) => n) : [];
  found.replaceChildren(...scored.sort((a, b) => b[0] - a[0]).slice(0, 8).map(([, s]) => row(s, words)));
  if (words.length && !scored.length) found.textContent = "Nothing found";
}
search.addEventListener("input", show);
search.addEventListener("keydown", e => { if (e.key === "Escape") { search.value = ""; show(); } });
theme.hidden = search.hidden = false;

// What is wider than the page can be scrolled with the keys, too.
addEventListener("load", () => {
  for (const box of document.querySelectorAll("pre, .table, table, math")) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
