"use strict";
// Search titles, build a history, and see what every student recommends next. Titles are only ever set as text.

const at = (id) => document.getElementById(id);
const history = [];
let students = [];
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
  at("found").replaceChildren(...found.map((item) => {
    const row = element("li");
    const button = element("button", "", shown(item));
    button.type = "button";
    button.addEventListener("click", () => {
      history.push(item);
      at("search").value = "";
      at("found").replaceChildren();
      at("search").focus();
      update();
    });
    row.append(button);
    return row;
  }));
}

function showHistory() {
  at("history").replaceChildren(...history.map((item, place) => {
    const row = element("li", "", shown(item));
    const button = element("button", "", "×");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${shown(item)}`);
    button.addEventListener("click", () => { history.splice(place, 1); update(); });
    row.append(button);
    return row;
  }));
}

function column(name, items, shared) {
  const card = element("article");
  const list = element("ol");
  items.forEach((item, place) => {
    const row = element("li", shared.has(item.item) ? "shared" : "");
    row.append(element("span", "rank", place + 1), element("span", "title", shown(item)),
      element("span", "score", item.score.toFixed(2)));
    list.append(row);
  });
  card.append(element("h3", "", name), list);
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
    const everywhere = lists.map((list) => new Set(list.map((item) => item.item)));
    const shared = new Set(lists.length < 2 ? [] : [...everywhere[0]].filter((id) => everywhere.every((s) => s.has(id))));
    at("answers").replaceChildren(...lists.map((list, place) => column(students[place], list, shared)));
  } catch (error) {
    at("answers").replaceChildren(element("p", "error", error.message));
  }
}

async function begin() {
  const health = await call("health");
  students = health.students;
  const several = students.length > 1 ? " What all of them name is highlighted." : "";
  at("about").textContent = `${students.length} model${students.length > 1 ? "s" : ""} over ${health.items} items.${several}`;
  await update();
}

at("search").addEventListener("input", () => search().catch((error) => { at("about").textContent = error.message; }));
at("clear").addEventListener("click", () => { history.length = 0; update(); });
at("seen").addEventListener("change", update);
at("count").addEventListener("change", update);
at("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  at("entry").hidden = true;
  update();
});
begin().catch((error) => { at("about").textContent = error.message; });
