/* Start: read the data, draw the plots, load each example when it comes near, switch the theme. */

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  for (const figure of document.querySelectorAll("figure[data-plot]")) setUpPlot(figure, data.plots[figure.dataset.plot]);
  const views = [];
  const near = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      entry.target.view.load();
    }
  }, {rootMargin: "600px"});
  const place = document.querySelector(".examples");
  for (const example of place ? data.examples : []) {
    const view = new ExampleView(place, example, data.shares);
    view.article.view = view;
    views.push(view);
    near.observe(view.article);
  }
  const redraw = () => views.forEach(view => view.draw());
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", redraw);
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    root.dataset.theme = (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
    redraw();
  });
})();
