"use strict";
// Light or dark: what the reader chose in this page, else what the system asks for. Runs before anything is drawn.
(() => {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = ["automatic", "light", "dark"];
  let chosen = "automatic";
  const apply = () => {
    const dark = chosen === "automatic" ? system.matches : chosen === "dark";
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.dispatchEvent(new Event("themechange"));
  };
  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.addEventListener("click", () => {
      chosen = themes[(themes.indexOf(chosen) + 1) % themes.length];
      button.textContent = `Theme: ${chosen}`;
      apply();
    });
  });
})();
