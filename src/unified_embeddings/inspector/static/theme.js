// Runs before the page is drawn, so that it never shows the wrong colours first.
"use strict";
document.documentElement.classList.add("script");
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) {
  // Without storage, the system's colours stay.
}
