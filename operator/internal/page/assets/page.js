// Draws the page again every few seconds, section by section, so that the reader's place, focus, open tables and filter
// stay. Without it the page is whole too.
"use strict";
(() => {
  const every = 5000;
  const fresh = document.getElementById("fresh");
  const pause = document.getElementById("pause");
  let paused = false, filter = "", told = "";

  const say = (text) => { if (text !== told) { told = text; fresh.textContent = text; } };

  // The filter of nodes belongs to the script, for without one it would do nothing.
  const box = document.createElement("label");
  box.className = "filter";
  box.append("Show nodes whose line contains ");
  const input = document.createElement("input");
  input.type = "search";
  input.addEventListener("input", () => { filter = input.value.trim().toLowerCase(); hide(); });
  box.append(input);

  const hide = () => {
    for (const row of document.querySelectorAll("#node-table tbody tr")) {
      row.hidden = filter !== "" && !row.textContent.toLowerCase().includes(filter);
    }
  };
  const place = () => {
    const table = document.querySelector("#nodes .scroll");
    if (table && !box.isConnected) table.before(box);
    hide();
  };

  const redraw = (text) => {
    const next = new DOMParser().parseFromString(text, "text/html");
    for (const section of next.querySelectorAll("section[id]")) {
      const now = document.getElementById(section.id);
      // Who is in the middle of something is not disturbed.
      if (!now || now.contains(document.activeElement) && document.activeElement !== input) continue;
      for (const open of now.querySelectorAll("details[open]")) {
        const twin = open.id && section.querySelector("#" + open.id);
        if (twin) twin.open = true;
      }
      if (section.id === "nodes") {
        const old = now.querySelector("#node-table tbody"), body = section.querySelector("#node-table tbody");
        if (old && body) { old.replaceWith(body); continue; }
      }
      const left = [...now.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
      now.replaceChildren(...section.childNodes);
      now.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = left[i] || 0; });
    }
    place();
  };

  const look = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch("main", {cache: "no-store", signal: AbortSignal.timeout(20000)});
        if (!answer.ok) throw new Error(answer.statusText);
        redraw(await answer.text());
        say("live");
      } catch {
        say("The operator does not answer; this is what it said last.");
      }
    }
    setTimeout(look, every);
  };

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    say(paused ? "paused" : "live");
  });
  place();
  say("live");
  setTimeout(look, every);
})();
