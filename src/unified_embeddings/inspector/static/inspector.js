"use strict";

// --- colours -------------------------------------------------------------------------------------

const themes = { auto: "Auto", light: "Light", dark: "Dark" };
const spoken = {
  auto: "Colours as the system has them",
  light: "Light colours",
  dark: "Dark colours",
};
const root = document.documentElement;

function showTheme(button) {
  const theme = root.dataset.theme || "auto";
  button.textContent = themes[theme];
  button.setAttribute("aria-label", `${themes[theme]}: ${spoken[theme]}`);
}

for (const button of document.querySelectorAll("[data-theme-switch]")) {
  showTheme(button);
  button.addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(root.dataset.theme || "auto") + 1) % names.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("theme", next);
    } catch (error) {
      // It holds until the page is left.
    }
    showTheme(button);
  });
}

// --- copying -------------------------------------------------------------------------------------

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch (error) {
    button.textContent = "Not allowed; select and copy";
  }
  setTimeout(() => {
    button.textContent = label;
  }, 1600);
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () =>
    copy(button, document.querySelector(".python code").textContent));
}
for (const button of document.querySelectorAll("[data-copy-link]")) {
  button.addEventListener("click", () => copy(button, location.href));
}

// --- forms ---------------------------------------------------------------------------------------

// Empty fields would make an address that is long for nothing.
for (const form of document.querySelectorAll("form.ask")) {
  form.addEventListener("formdata", (event) => {
    const empty = [];
    for (const [name, value] of event.formData.entries()) if (value === "") empty.push(name);
    for (const name of new Set(empty)) {
      const values = event.formData.getAll(name).filter((value) => value !== "");
      event.formData.delete(name);
      for (const value of values) event.formData.append(name, value);
    }
  });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const question = document.getElementById("q");
    if (question) {
      event.preventDefault();
      question.focus();
      question.select();
    }
  }
  if (event.key === "Escape") {
    for (const sum of document.querySelectorAll(".sum")) sum.classList.add("closed");
  }
});

// --- the same passage in several lists -------------------------------------------------------------

function showKey(key) {
  for (const element of document.querySelectorAll(".lists [data-key]")) {
    element.classList.toggle("on", key !== null && element.dataset.key === key);
  }
  for (const lists of document.querySelectorAll(".lists")) {
    lists.classList.toggle("choosing", key !== null);
  }
}

for (const hit of document.querySelectorAll(".hit")) {
  const open = () => {
    for (const sum of document.querySelectorAll(".sum.closed")) sum.classList.remove("closed");
    showKey(hit.dataset.key);
  };
  hit.addEventListener("pointerenter", open);
  hit.addEventListener("pointerleave", () => showKey(null));
  hit.addEventListener("focusin", open);
  hit.addEventListener("focusout", () => showKey(null));
}

// --- the map -------------------------------------------------------------------------------------

const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

for (const map of document.querySelectorAll("[data-map]")) {
  const dots = [...map.querySelectorAll("circle")];
  const label = document.querySelector("[data-map-label]");
  let chosen = null;

  const choose = (dot) => {
    if (chosen) chosen.classList.remove("on");
    chosen = dot;
    if (!dot) return;
    dot.classList.add("on");
    dot.parentElement.append(dot); // drawn last, above the others
    label.textContent = dot.querySelector("title").textContent;
  };
  const position = (dot) => [Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))];
  const neighbour = ([dx, dy]) => {
    if (!chosen) return dots[0];
    const [x, y] = position(chosen);
    let best = chosen;
    let least = Infinity;
    for (const dot of dots) {
      const [along, across] = [position(dot)[0] - x, position(dot)[1] - y];
      const ahead = along * dx + across * dy;
      const aside = Math.abs(along * dy) + Math.abs(across * dx);
      // What lies more ahead than aside, the nearest first.
      if (ahead > 0 && aside <= ahead && ahead + 2 * aside < least) {
        least = ahead + 2 * aside;
        best = dot;
      }
    }
    return best;
  };

  map.addEventListener("keydown", (event) => {
    if (event.key in directions) {
      event.preventDefault();
      choose(neighbour(directions[event.key]));
    } else if (event.key === "Enter" && chosen) {
      location.assign(chosen.dataset.href);
    }
  });
  map.addEventListener("pointerover", (event) => {
    const dot = event.target.closest("circle");
    if (dot && dot !== chosen) choose(dot);
  });
  map.addEventListener("click", (event) => {
    const dot = event.target.closest("circle");
    if (dot) location.assign(dot.dataset.href);
  });
}

// --- the tokens that meet ------------------------------------------------------------------------

for (const flow of document.querySelectorAll("[data-flow]")) {
  const spans = [...flow.querySelectorAll("span")];
  const radios = [...document.querySelectorAll('.tokens input[type="radio"]')];
  const rows = radios.map((radio) => radio.value).filter((levels) => levels !== "");
  const paint = (levels) => {
    spans.forEach((span, column) => {
      const shades = levels === "" ? rows.map((row) => Number(row[column])) : [Number(levels[column])];
      span.className = `h${Math.max(0, ...shades)}`;
    });
  };
  for (const radio of radios) radio.addEventListener("change", () => paint(radio.value));
  paint("");

  const drawing = document.querySelector("[data-heat]");
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * spans.length);
    spans.forEach((span, place) => span.classList.toggle("on", place === column));
  });
  drawing.addEventListener("pointerleave", () => {
    for (const span of spans) span.classList.remove("on");
  });
}
