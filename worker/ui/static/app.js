// Keeps the overview and running jobs up to date. Pages work without it, but for the charts.
import { Charts } from "/static/charts.js";

const SECONDS = 2;

async function overview(charts) {
  let last = -1;
  const connection = document.getElementById("connection");
  for (;;) {
    try {
      const answer = await fetch(`/live?since=${last}`, { signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(answer.status);
      const live = await answer.json();
      for (const [part, html] of Object.entries(live.shown)) show(document.getElementById(part), html);
      charts.add(live.series, live.points, live.last < last);
      last = live.last;
      connection.hidden = true;
    } catch {
      connection.hidden = false;
    }
    await pause(SECONDS);
  }
}

// The text was escaped where it was rendered. It changes only if there is news, so that a reader of
// the screen hears each fault once, and a focused link stays.
function show(element, html) {
  if (element.dataset.shown === html) return;
  element.dataset.shown = html;
  const focused = element.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const left = element.querySelector(".wide")?.scrollLeft ?? 0;
  element.innerHTML = html;
  if (left) element.querySelector(".wide").scrollLeft = left;
  if (focused) element.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

async function job(main) {
  while (main.dataset.running !== undefined) {
    await pause(1);
    try {
      const answer = await fetch(location.href);
      if (answer.redirected) return location.replace(answer.url);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      if (!fresh) return;
      main.replaceChildren(...fresh.childNodes);
      if (fresh.dataset.running === undefined) delete main.dataset.running;
    } catch {
      // The command may come back.
    }
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const charts = document.getElementById("charts");
if (charts) overview(new Charts(charts, document.querySelectorAll("input[name=window]")));
job(document.querySelector("main"));
