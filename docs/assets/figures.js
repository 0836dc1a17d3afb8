// Draws the page's plotly figures, in ink that suits the light or the dark scheme.
(() => {
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  const ink = () => getComputedStyle(document.body).getPropertyValue("--md-typeset-color");
  const places = [...document.querySelectorAll(".cell-output.figure")];

  for (const place of places) {
    const { data, layout } = JSON.parse(place.querySelector("script").textContent);
    layout.font = { ...layout.font, color: ink() };
    Plotly.newPlot(place, data, layout, options);
  }

  const recolour = () => places.forEach((place) => Plotly.relayout(place, { "font.color": ink() }));
  new MutationObserver(recolour).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
})();
