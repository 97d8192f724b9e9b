// Keeps an open page true. The server says that something has changed, and no more; then the page is fetched as the first
// time, and the parts of it that are marked as live take the place of the old ones. No text is ever turned into markup here.

const REFRESH_EVERY_MILLIS = 1000;
const link = document.querySelector("#link");
let due = false;
let busy = false;
let over = false;

const say = (state, text) => {
  if (!link || link.textContent === text) return;
  link.className = `link ${state}`;
  link.textContent = text;
};

// A fetched page is parsed by the browser as a document of its own, in which no script runs.
const fetched = () =>
  new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname + location.search);
    request.responseType = "document";
    request.setRequestHeader("Countersign-Refresh", "1");
    request.timeout = 10000;
    request.onload = () => (request.status === 200 ? done(request.responseXML) : failed(request.status));
    request.onerror = request.ontimeout = () => failed(0);
    request.send();
  });

// Whoever reads or selects something there is not disturbed.
const inUse = (part) =>
  part.contains(document.activeElement) || (getSelection().type === "Range" && getSelection().containsNode(part, true));

const refresh = async () => {
  if (busy || over || document.hidden) {
    due = true;
    return;
  }
  busy = true;
  due = false;
  try {
    const fresh = await fetched();
    for (const part of document.querySelectorAll("[data-live][id]")) {
      const next = fresh.getElementById(part.id);
      if (next && !inUse(part) && !next.isEqualNode(part)) {
        const scrolled = [...part.querySelectorAll(".graph, pre")].map((one) => [one.scrollLeft, one.scrollTop]);
        const adopted = document.adoptNode(next);
        part.replaceWith(adopted);
        adopted.querySelectorAll(".graph, pre").forEach((one, at) => {
          if (scrolled[at]) [one.scrollLeft, one.scrollTop] = scrolled[at];
        });
      }
    }
  } catch (status) {
    if (status === 401) ended();
  }
  setTimeout(() => {
    busy = false;
    if (due) refresh();
  }, REFRESH_EVERY_MILLIS);
};

const ended = () => {
  over = true;
  say("off", "Signed out: the session is over");
};

// Spans of time, told as the server tells them.
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const span = (secs) => {
  const at = UNITS.findIndex(([unit]) => unit <= secs);
  if (at < 0) return "0 s";
  const [unit, word] = UNITS[at];
  const whole = Math.floor(secs / unit);
  const rest = UNITS[at + 1];
  const more = rest ? Math.floor((secs % unit) / rest[0]) : 0;
  return whole < 10 && more ? `${whole} ${word} ${more} ${rest[1]}` : `${whole} ${word}`;
};

const tick = () => {
  for (const time of document.querySelectorAll("time[data-relative]")) {
    const off = (Date.parse(time.dateTime) - Date.now()) / 1000;
    const secs = Math.floor(Math.abs(off));
    const text = secs < 1 ? "now" : off > 0 ? `in ${span(secs)}` : `${span(secs)} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
};

const watch = () => {
  const source = new EventSource("/live");
  source.addEventListener("open", () => say("on", "Live"));
  source.addEventListener("changed", refresh);
  source.addEventListener("over", () => {
    source.close();
    ended();
  });
  source.onerror = () => {
    if (over) return;
    const at = new Date().toLocaleTimeString();
    if (!link?.classList.contains("off")) say("off", `Not live since ${at}`);
    if (source.readyState === EventSource.CLOSED) setTimeout(watch, 3000);
  };
  // What was missed in between is made up for.
  source.addEventListener("open", () => due && refresh());
};

document.addEventListener("visibilitychange", () => !document.hidden && due && refresh());
// At a phone's width the list of pages is a row that is pushed: to where this page is in it.
document.querySelector("nav [aria-current=page]")?.scrollIntoView({ block: "nearest", inline: "center" });
setInterval(tick, 1000);
tick();
watch();
