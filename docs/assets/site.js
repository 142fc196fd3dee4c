/* The theme's search is a dialog without a name: screen readers are told one. */
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
