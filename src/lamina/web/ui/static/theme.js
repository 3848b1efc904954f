// Runs before the first paint: a chosen theme must not flash the other one.
(function () {
  let chosen = null;
  try { chosen = localStorage.getItem("lamina-theme"); } catch { /* storage is off: follow the system */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
