"use strict";
// Search titles, build a history, and see what every student recommends next. Titles are only ever set as text.

const at = (id) => document.getElementById(id);
const history = [];
let students = [];
let teacher = null;
let labelled = 0;
let token = "";
let asked = 0;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function call(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (answer.status === 401) {
    at("entry").hidden = false;
    at("token").focus();
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.detail.map((found) => `${found.field}: ${found.rule}`).join("; "));
  return content;
}

const shown = (found) => found.title || found.item;

async function search() {
  const number = ++asked;
  const words = at("search").value.trim();
  const found = words ? await call(`items?limit=8&query=${encodeURIComponent(words)}`) : [];
  if (number !== asked) return; // a later search has begun
  const rows = found.map((item) => {
    const row = element("li");
    const button = element("button", "", shown(item));
    button.type = "button";
    button.addEventListener("click", () => {
      at("search").value = "";
      at("found").replaceChildren();
      at("search").focus();
      add(item);
    });
    row.append(button);
    return row;
  });
  at("found").replaceChildren(...(words && !rows.length ? [element("li", "none", "No title holds these words.")] : rows));
}

function add(item) {
  history.push(item);
  update();
}

function showHistory() {
  at("empty").hidden = history.length > 0;
  at("history").replaceChildren(...history.map((item, place) => {
    const row = element("li");
    const button = element("button", "", "×");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${shown(item)}`);
    button.addEventListener("click", () => { history.splice(place, 1); update(); });
    row.append(element("span", "", shown(item)), button);
    return row;
  }));
}

// A bar behind each title says how its score lies between the list's last one and its first.
function column(name, items, shared) {
  const card = element("article");
  card.append(element("h3", "", name));
  if (!items.length) {
    card.append(element("p", "", name === teacher ? "It did not label this history." : "It names nothing."));
    return card;
  }
  const best = items[0].score, span = best - items[items.length - 1].score || 1;
  const list = element("ol");
  items.forEach((item, place) => {
    const row = element("li", shared.has(item.item) ? "shared" : "");
    const button = element("button");
    button.type = "button";
    button.title = "Add to the history";
    button.style.setProperty("--share", `${Math.round(100 - 90 * (best - item.score) / span)}%`);
    button.append(element("span", "rank", place + 1), element("span", "title", shown(item)),
      element("span", "score", item.score.toFixed(2)));
    button.addEventListener("click", () => add(item));
    row.append(button);
    list.append(row);
  });
  card.append(list);
  return card;
}

let latest = 0;
async function update() {
  showHistory();
  const number = ++latest;
  const wanted = { histories: [history.map((item) => item.item)], k: Number(at("count").value) || 10,
    exclude_seen: at("seen").checked };
  try {
    const answers = await Promise.all(students.map((student) => call("recommend", { ...wanted, student })));
    if (number !== latest) return;
    const lists = answers.map((answer) => answer.recommendations[0]);
    const everywhere = lists.filter((list) => list.length).map((list) => new Set(list.map((item) => item.item)));
    const shared = new Set(everywhere.length < 2 ? [] : [...everywhere[0]].filter((id) => everywhere.every((s) => s.has(id))));
    at("answers").replaceChildren(...lists.map((list, place) => column(students[place], list, shared)));
  } catch (error) {
    at("answers").replaceChildren(element("p", "error", error.message));
  }
}

async function begin() {
  const health = await call("health");
  students = health.students;
  teacher = health.teacher;
  at("example").hidden = teacher === null;
  const several = students.length > 1 ? " What all of them name is highlighted." : "";
  const items = health.items.toLocaleString("en");
  at("about").textContent = `${students.length} model${students.length > 1 ? "s" : ""} over ${items} items.${several}`;
  await update();
}

at("search").addEventListener("input", () => search().catch((error) => { at("about").textContent = error.message; }));
at("clear").addEventListener("click", () => { history.length = 0; update(); });
at("example").addEventListener("click", async () => {
  const found = await call(`labelled?number=${labelled++}`);
  history.splice(0, history.length, ...found);
  update();
});
at("seen").addEventListener("change", update);
at("count").addEventListener("change", update);
at("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  at("entry").hidden = true;
  update();
});
begin().catch((error) => { at("about").textContent = error.message; });
