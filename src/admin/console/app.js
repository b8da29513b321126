// What the pages gain by a script: times of the browser's zone, a page that refreshes itself, the live list, keys.
const main = document.getElementById("main");
const busy = () =>
  document.hidden || document.querySelector("details[open], dialog[open]") || String(getSelection()) !== "" ||
  main.querySelector("input:focus, select:focus, input[type=checkbox]:checked");

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) {
      time.title = time.dateTime;
      time.textContent = at.toLocaleString(document.documentElement.lang, { hour12: false });
    }
  }
}
localTimes(document);

// Now and a target's page are read again every 5 s; a failure leaves what is shown.
const refreshes = location.pathname === "/console/" || location.pathname.startsWith("/console/targets/");
let held = false;
async function refresh() {
  if (held || busy()) return;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "error" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    if (!fresh || busy()) return;
    localTimes(fresh);
    const focused = document.activeElement?.getAttribute?.("href");
    main.replaceChildren(...fresh.childNodes);
    if (focused) main.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
  } catch {
    // The next one may succeed.
  }
}
if (refreshes) setInterval(refresh, 5000);

// The live list.
const rows = document.getElementById("rows");
if (rows) {
  const state = document.getElementById("live");
  const hold = document.getElementById("hold");
  let missed = 0;
  const source = new EventSource("/console/tail" + location.search);
  const show = (word) => { state.textContent = missed ? `${word}, ${state.dataset.missed} ${missed}` : word; };
  const add = (message) => {
    if (held) return;
    const data = JSON.parse(message.data);
    const row = document.createElement("tr");
    const took = data.duration_ms === undefined ? "" : `${Math.round(data.duration_ms)} ms`;
    const at = new Date(data.at).toLocaleTimeString(document.documentElement.lang, { hour12: false });
    const result = data.result ?? [data.outcome, data.status, data.error].filter(Boolean).join(" ");
    for (const text of [at, data.kind, data.account, data.openid, data.target, result, took, data.event]) {
      row.insertCell().textContent = text ?? "";
    }
    rows.prepend(row);
    while (rows.rows.length > 200) rows.deleteRow(-1);
  };
  source.addEventListener("push", add);
  source.addEventListener("attempt", add);
  source.addEventListener("lagged", (message) => { missed += JSON.parse(message.data).missed; show("●"); });
  source.onopen = () => show("●");
  source.onerror = () => show("○");
  hold.onclick = () => {
    held = !held;
    hold.setAttribute("aria-pressed", String(held));
  };
}

// Keys, which one switch in the foot turns off: single keys disturb who dictates.
const keys = document.getElementById("keys");
let on = localStorage.getItem("wxrelay-keys") !== "off";
const mark = () => keys?.setAttribute("aria-pressed", String(!on));
if (keys) {
  keys.hidden = false;
  mark();
  keys.onclick = () => {
    on = !on;
    localStorage.setItem("wxrelay-keys", on ? "on" : "off");
    mark();
  };
}
const pages = { n: "/console/", d: "/console/dead", e: "/console/events", l: "/console/live" };
let going = false;
addEventListener("keydown", (event) => {
  if (!on || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) return;
  const links = [...main.querySelectorAll("tbody tr td a")].filter((link, at, all) => all.findIndex((one) => one.closest("tr") === link.closest("tr")) === at);
  const at = links.indexOf(document.activeElement);
  if (going && pages[event.key]) location.assign(pages[event.key]);
  else if (event.key === "/") document.getElementById("search")?.focus();
  else if (event.key === "j") links[Math.min(at + 1, links.length - 1)]?.focus();
  else if (event.key === "k") links[Math.max(at - 1, 0)]?.focus();
  else if (event.key === "r") held = !held;
  else if (event.key !== "g") { going = false; return; }
  going = event.key === "g";
  event.preventDefault();
});
