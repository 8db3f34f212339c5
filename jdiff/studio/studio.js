// Moves what a result shows: the way from noise, the views of an illusion, the distance of a hybrid.
(() => {
  const MOVE = 900, STAND = 1500, FRAME = 110;
  const result = (element) => element.closest(".jd-result");

  // The way from noise: a share from 0 to 1 moves all sprites; at 1 the finished pictures are seen.
  const scrub = (slider) => {
    const share = slider.value / slider.max;
    result(slider).style.setProperty("--jd-share", share);
    result(slider).classList.toggle("jd-scrubbing", share < 1);
  };
  const playWay = (button) => {
    const slider = result(button).querySelector('[data-jd="step"]');
    slider.value = 0;
    const tick = () => {
      if (!slider.isConnected) return;
      scrub(slider);
      if (+slider.value >= +slider.max) return;
      slider.value = +slider.value + 1;
      setTimeout(tick, FRAME);
    };
    tick();
  };

  // A view in which each pixel travels: drawn on a canvas above the picture.
  const travel = (stage, places, back, done) => {
    const image = stage.querySelector("img"), side = image.naturalWidth, zoom = 6;
    const small = new OffscreenCanvas(side, side).getContext("2d");
    small.drawImage(image, 0, 0);
    const pixels = small.getImageData(0, 0, side, side).data;
    const canvas = stage.querySelector("canvas") || stage.appendChild(document.createElement("canvas"));
    canvas.width = canvas.height = side * zoom;
    const pen = canvas.getContext("2d"), start = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const frame = (now) => {
      const part = still ? 1 : Math.min(1, (now - start) / MOVE);
      const share = (1 - Math.cos(Math.PI * (back ? 1 - part : part))) / 2;
      pen.fillStyle = "white";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      places.forEach((to, from) => {
        const [y, x] = [Math.floor(from / side), from % side], [v, u] = [Math.floor(to / side), to % side];
        pen.fillStyle = `rgb(${pixels[4 * from]} ${pixels[4 * from + 1]} ${pixels[4 * from + 2]})`;
        pen.fillRect(Math.round(zoom * (x + share * (u - x))), Math.round(zoom * (y + share * (v - y))), zoom, zoom);
      });
      if (part < 1) requestAnimationFrame(frame);
      else done(canvas);
    };
    requestAnimationFrame(frame);
  };

  // Shows one view of all pictures of an illusion.
  const view = (turning, name) => {
    const all = JSON.parse(turning.dataset.travel || "{}"), before = turning.dataset.now;
    if (name === before) return;
    turning.dataset.now = name;
    turning.querySelectorAll('[data-jd="view"]').forEach((chip) => chip.classList.toggle("jd-on", chip.dataset.view === name));
    turning.querySelectorAll(".jd-stage").forEach((stage) => {
      if (name in all) travel(stage, all[name], false, () => {});
      else if (before in all) travel(stage, all[before], true, (canvas) => turning.dataset.now in all || canvas.remove());
    });
  };
  const playTurn = (button) => {
    const turning = button.closest(".jd-turning");
    const names = [...turning.querySelectorAll('[data-jd="view"]')].map((chip) => chip.dataset.view);
    if (button.textContent === "Pause") { button.textContent = "Turn"; return; }
    button.textContent = "Pause";
    const tick = () => {
      if (!turning.isConnected || button.textContent !== "Pause") return;
      view(turning, names[(names.indexOf(turning.dataset.now) + 1) % names.length]);
      setTimeout(tick, MOVE + STAND);
    };
    tick();
  };

  // A hybrid from afar: smaller and blurred.
  const distance = (slider) => {
    const style = slider.closest(".jd-hybrids").style;
    style.setProperty("--jd-blur", `${(slider.value / 100) * 9}px`);
    style.setProperty("--jd-scale", 1 - 0.006 * slider.value);
  };

  document.addEventListener("input", (event) => {
    const kind = event.target.dataset && event.target.dataset.jd;
    if (kind === "step") scrub(event.target);
    if (kind === "distance") distance(event.target);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-jd]");
    if (!button) return;
    if (button.dataset.jd === "way") playWay(button);
    if (button.dataset.jd === "turn") playTurn(button);
    if (button.dataset.jd === "view") view(button.closest(".jd-turning"), button.dataset.view);
  });
})();
